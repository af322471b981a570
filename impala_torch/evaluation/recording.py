"""Videos of games: an MP4 each (H.264, 4:2:0, index first), which browsers play as it loads."""

import fractions
import logging
import os
import pathlib
import re
from typing import Any

import av
import numpy as np

from impala_torch.evaluation import picture
from impala_torch.evaluation.games import Game
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError

log = logging.getLogger(__name__)

_QUALITY = "20"  # x264's constant rate factor: 18 looks like the original, 28 saves bytes


class Recorder:
    """A spectator that writes ``<level>-<frames>-game-<n>.mp4`` into --record; a context manager.

    A file has its name when it is whole; one of an earlier recording is replaced.
    """

    def __init__(self, config: Config, frames: int) -> None:
        """
        Args:
          config: the flags.
          frames: that the agent was trained for, which names the files.

        Raises:
          UserError: the folder cannot be made or written to.
        """
        if not config.render:  # gymnasium's levels draw with SDL, and want no display for it
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        self._folder = pathlib.Path(config.record)
        self._margin = config.record_margin
        self._rate = 60.0
        level = re.sub(r"[^\w.-]+", "-", config.level_name)
        self._stem = f"{level}-{frames}-game"
        self._game = 1
        self._film: _Film | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._temporary
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--record={config.record} cannot be written to: {error.strerror}"
            ) from error

    @property
    def _temporary(self) -> pathlib.Path:
        return self._folder / f".{self._stem}-{self._game}.part.mp4"

    def start(self, frames_per_sec: float) -> None:
        self._rate = frames_per_sec

    def frame(self, shown: np.ndarray, score: float, value: float) -> None:
        image = picture.compose(shown, score, value, self._margin)
        if self._film is None:
            self._film = _Film(self._temporary, image.shape[1], image.shape[0], self._rate)
        self._film.write(image)

    def game_over(self, game: Game) -> None:
        assert self._film is not None, "a game without a frame"
        self._film.close()
        path = self._folder / f"{self._stem}-{self._game}.mp4"
        self._temporary.replace(path)
        log.info("recorded: %s", path)
        self._film = None
        self._game += 1

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: Any) -> None:
        """Drops a game that has not ended."""
        if self._film is not None:
            self._film.close()
            self._temporary.unlink(missing_ok=True)


class _Film:
    """One MP4 that is being written."""

    def __init__(self, path: pathlib.Path, width: int, height: int, frames_per_sec: float) -> None:
        self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
        rate = fractions.Fraction(frames_per_sec).limit_denominator(1000)
        self._stream: Any = self._container.add_stream(
            "libx264", rate, options={"crf": _QUALITY, "preset": "veryfast"}
        )
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"

    def write(self, image: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()
