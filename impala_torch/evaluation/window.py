"""A window that shows games as they are played, as fast as a person plays them."""

import os
import sys
from typing import Any

import numpy as np

from impala_torch.evaluation import picture
from impala_torch.evaluation.games import Enough, Game
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting would be in our output
import pygame

_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")  # one of them names it
_INSTEAD = "--record=DIR makes videos without one"


class Window:
    """A spectator with a window of its own, through SDL; a context manager."""

    def __init__(self, config: Config) -> None:
        """Raises UserError where there is no display."""
        self._margin = config.record_margin
        self._title = f"{config.agent_name} on {config.level_name}"
        self._rate = 60.0
        self._game = 1
        self._surface: pygame.Surface | None = None
        # Without a display SDL falls back on drawing to nowhere.
        if sys.platform == "linux" and not any(os.environ.get(name) for name in _DISPLAYS):
            raise UserError(
                f"--render finds no display here: neither DISPLAY nor WAYLAND_DISPLAY is set; "
                f"{_INSTEAD}"
            )
        try:
            pygame.display.init()
        except pygame.error as error:
            raise UserError(f"--render cannot open a window ({error}); {_INSTEAD}") from error
        self._clock = pygame.time.Clock()

    def start(self, frames_per_sec: float) -> None:
        self._rate = frames_per_sec

    def frame(self, shown: np.ndarray, score: float, value: float) -> None:
        """Shows a frame for its time. Raises Enough when the user has closed the window."""
        image = picture.compose(shown, score, value, self._margin)
        if self._surface is None:
            self._surface = pygame.display.set_mode((image.shape[1], image.shape[0]))
            pygame.display.set_caption(f"{self._title}, game {self._game}")
        pygame.surfarray.blit_array(self._surface, image.swapaxes(0, 1))
        pygame.display.flip()
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            raise Enough
        self._clock.tick(self._rate)

    def game_over(self, game: Game) -> None:
        self._game += 1
        pygame.display.set_caption(f"{self._title}, game {self._game}")

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *_: Any) -> None:
        pygame.display.quit()
