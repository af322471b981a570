"""One place for a run's numbers: TensorBoard, ``metrics.csv`` and the terminal's line.

They are written beside the learner, a row and its events an interval, however many episodes end in
it. What fails to be written costs no training.
"""

import collections
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from impala_torch.report import board
from impala_torch.report.appended import AppendedCsv
from impala_torch.report.beside import Beside, Sink
from impala_torch.report.board import Board
from impala_torch.report.rows import GAMES
from impala_torch.structures import EpisodeResult

log = logging.getLogger(__name__)

_WAITING = 1000  # rows that may wait to be written, where a disk stalls
_END_SECS = 20.0  # that the last ones may take when a run ends

# Columns of metrics.csv, in order; a later version may add some at the end, never rename one.
COLUMNS = (
    "time",  # seconds since 1970
    "hours",  # of training, over all starts
    "frames",
    "updates",
    "frames_per_sec",
    "updates_per_sec",
    "episode_return",  # mean of the last GAMES episodes of the learner (lives)
    "episode_raw_return",  # mean of the last GAMES whole games
    "episode_raw_frames",  # their mean length
    "games",  # whole games finished, in all
    "total_loss",
    "pg_loss",
    "baseline_loss",
    "entropy_loss",
    "entropy",  # per step, nats
    "mean_rho",
    "baseline_mean",
    "grad_norm",
    "learning_rate",
    "policy_lag",  # learner updates between acting and learning, mean
    "queue_batches",
    "batch_wait_share",  # share of the time that the learner waited for data
    "actors",
    "allreduce_share",  # share of the time between waits that went into reducing gradients
    "shared_share",  # unrolls that came from other learners, by unroll that was learned from
    "kl",  # what an update's policy differs from the one that its batch began with, nats, mean
    "clipped_share",  # actions whose probability moved as far as it may
    "games_in_mean",  # whole games that episode_raw_return and episode_raw_frames are means of
    "episodes_in_mean",  # the same of episode_return
    "skipped_updates",  # that were not made, in all: their gradient was not finite
)


class RunLog:
    """Writes the numbers of one run. Only rank 0 of the learner group has one."""

    def __init__(
        self,
        logdir: pathlib.Path,
        level_name: str,
        hours: float,
        games: int,
        frames: int = 0,
        also: Mapping[str, Callable[[Mapping[str, Any]], None]] | None = None,
    ) -> None:
        """
        Args:
          logdir: the run's directory.
          level_name: prefix of the episodes' TensorBoard tags.
          hours: trained before this start.
          games: whole games finished before this start.
          frames: trained before this start; what the event files of earlier ones tell of later
            frames is void. Its rows stay in metrics.csv, where ``rows`` passes them over.
          also: what else gets each row, by a name for people.
        """
        self._level = level_name
        self._csv = AppendedCsv(logdir / "metrics.csv", COLUMNS)
        self._board = Board(logdir, purge_step=frames + 1)
        self._sinks = [Sink(f"{logdir / 'metrics.csv'}", lambda row, *_: self._csv.append(row))]
        self._sinks.append(Sink(f"TensorBoard's file in {logdir}", self._to_board))
        self._others = [Sink(name, write) for name, write in (also or {}).items()]
        self._beside = Beside("telemetry", _WAITING)
        # A service that does not answer holds up no file.
        self._beside_others = Beside("telemetry of others", _WAITING)
        self._refused = 0
        self._hours_before = hours
        self._start = time.monotonic()
        self.games = games
        self._returns: collections.deque[float] = collections.deque(maxlen=GAMES)
        self._raw_returns: collections.deque[float] = collections.deque(maxlen=GAMES)
        self._raw_frames: collections.deque[int] = collections.deque(maxlen=GAMES)
        self._interval = _Interval()

    @property
    def hours(self) -> float:
        """Hours of training over all starts."""
        return self._hours_before + (time.monotonic() - self._start) / 3600

    @property
    def troubles(self) -> list[str]:
        """What cannot be written at the moment, and why, in sentences."""
        return [sink.trouble for sink in (*self._sinks, *self._others) if sink.trouble]

    def episodes(self, results: Iterable[EpisodeResult]) -> None:
        """Takes in finished episodes."""
        for result in results:
            self._returns.append(result.episode_return)
            self._interval.episodes.append((result.episode_return, result.episode_frames))
            if result.raw_return is not None and result.raw_frames is not None:
                self.games += 1
                self._raw_returns.append(result.raw_return)
                self._raw_frames.append(result.raw_frames)
                self._interval.games.append((result.raw_return, result.raw_frames))

    def write(self, values: Mapping[str, Any], actions: Iterable[int]) -> dict[str, Any]:
        """Has a row of metrics.csv written, and to TensorBoard, with the means over the episodes
        since the last one.

        Args:
          values: by column name; episodes' columns, time and hours are filled in here.
          actions: how often each action was taken since the last call, [A].

        Returns:
          The row.
        """
        row = {
            "time": round(time.time(), 2),
            "hours": round(self.hours, 5),
            "episode_return": _mean(self._returns),
            "episode_raw_return": _mean(self._raw_returns),
            "episode_raw_frames": _mean(self._raw_frames),
            "games": self.games,
            "games_in_mean": len(self._raw_returns),
            "episodes_in_mean": len(self._returns),
            **values,
        }
        interval, self._interval = self._interval, _Interval()
        works = [(self._beside, functools.partial(_put, self._sinks, row, interval, list(actions)))]
        works.append((self._beside_others, functools.partial(_put, self._others, row)))
        for beside, work in works:
            if not beside.give(work):
                if not self._refused:
                    log.error("the run's numbers are not taken as fast as they come: some are lost")
                self._refused += 1
        return row

    def flush(self) -> None:
        """Waits until what was written is in the run's files, but not for ever."""
        if not self._beside.flush(_END_SECS):
            log.error("the last rows were not written within %.0f s", _END_SECS)

    def close(self) -> None:
        self._beside_others.close(_END_SECS)
        if self._beside.close(_END_SECS):  # else the thread may be at it
            self._csv.close()
            self._board.close()

    # --- the thread beside ---

    def _to_board(
        self, row: Mapping[str, Any], interval: "_Interval", actions: Sequence[int]
    ) -> None:
        summaries = [
            board.scalar(f"{self._level}/{name}", value) for name, value in interval.means().items()
        ]
        summaries += [
            board.scalar(f"learner/{name}", value)
            for name, value in row.items()
            if name not in ("time", "frames") and value is not None
        ]
        if sum(actions):
            summaries.append(board.counts(f"{self._level}/actions", actions))
        self._board.write(summaries, row["frames"])


class _Interval:
    """The episodes between two rows."""

    def __init__(self) -> None:
        self.episodes: list[tuple[float, int]] = []  # return and frames, of the learner's
        self.games: list[tuple[float, int]] = []  # the same of whole games

    def means(self) -> dict[str, float]:
        """By the name of their tag; of what has not ended in it there is none."""
        found: dict[str, float] = {}
        for prefix, ended in (("episode", self.episodes), ("episode_raw", self.games)):
            if ended:
                returns, frames = zip(*ended, strict=True)
                found[f"{prefix}_return"] = sum(returns) / len(ended)
                found[f"{prefix}_frames"] = sum(frames) / len(ended)
        return found


def _put(sinks: Sequence[Sink], *what: Any) -> None:
    for sink in sinks:
        sink(*what)


def progress_line(row: Mapping[str, Any], total_frames: int) -> str:
    """One line of the learner's window from a row of ``RunLog.write``."""
    left = (total_frames - row["frames"]) / max(row["frames_per_sec"], 1e-6)
    raw = row["episode_raw_return"]
    lag = "-" if row["policy_lag"] is None else f"{row['policy_lag']:.1f}"
    shown = "none yet" if raw is None else f"{raw:.1f} (last {row['games_in_mean']} games)"
    return (
        f"frames {row['frames']:,} ({100 * row['frames'] / total_frames:.1f}%)  "
        f"{row['frames_per_sec']:,.0f} frames/s  return {shown}  lag {lag}  "
        f"queue {row['queue_batches']}  actors {row['actors']}  left {duration(left)}"
    )


def duration(secs: float) -> str:
    """``h:mm:ss``, or days where it is long."""
    if secs > 100 * 86400:
        return "> 100 days"
    minutes, seconds = divmod(max(0, int(secs)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02}:{seconds:02}"


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
