"""One place for a run's numbers: TensorBoard, ``metrics.csv`` and the terminal's line."""

import collections
import csv
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from impala_torch.structures import EpisodeResult

GAMES = 100  # the mean return of so many last games is what the line shows

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
    "skipped_updates",  # that were not made, in all: their gradient was not finite
)


class RunLog:
    """Writes the numbers of one run. Only rank 0 of the learner group has one."""

    def __init__(self, logdir: pathlib.Path, level_name: str, hours: float, games: int) -> None:
        """
        Args:
          logdir: the run's directory.
          level_name: prefix of the episodes' TensorBoard tags.
          hours: trained before this start.
          games: whole games finished before this start.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._level = level_name
        self._board = SummaryWriter(str(logdir), flush_secs=10)
        path = logdir / "metrics.csv"
        fresh = not path.exists() or path.stat().st_size == 0
        self._file = open(path, "a", newline="")  # noqa: SIM115 (closed by close)
        # A run that goes on keeps the columns that its file has.
        columns = COLUMNS if fresh else path.read_text().splitlines()[0].split(",")
        self._csv = csv.DictWriter(self._file, columns, restval="", extrasaction="ignore")
        if fresh:
            self._csv.writeheader()
        self._hours_before = hours
        self._start = time.monotonic()
        self.games = games
        self._returns: collections.deque[float] = collections.deque(maxlen=GAMES)
        self._raw_returns: collections.deque[float] = collections.deque(maxlen=GAMES)
        self._raw_frames: collections.deque[int] = collections.deque(maxlen=GAMES)

    @property
    def hours(self) -> float:
        """Hours of training over all starts."""
        return self._hours_before + (time.monotonic() - self._start) / 3600

    def episodes(self, results: Iterable[EpisodeResult], frames: int) -> None:
        """Takes in finished episodes, at ``frames`` environment frames."""
        add = self._board.add_scalar
        for result in results:
            self._returns.append(result.episode_return)
            add(f"{self._level}/episode_return", result.episode_return, frames)
            add(f"{self._level}/episode_frames", result.episode_frames, frames)
            if result.raw_return is not None and result.raw_frames is not None:
                self.games += 1
                self._raw_returns.append(result.raw_return)
                self._raw_frames.append(result.raw_frames)
                add(f"{self._level}/episode_raw_return", result.raw_return, frames)
                add(f"{self._level}/episode_raw_frames", result.raw_frames, frames)

    def write(self, values: Mapping[str, Any], actions: Iterable[int]) -> dict[str, Any]:
        """Writes a row of metrics.csv and to TensorBoard.

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
            **values,
        }
        self._csv.writerow({name: _short(value) for name, value in row.items()})
        self._file.flush()
        frames = row["frames"]
        for name, value in row.items():
            if name not in ("time", "frames") and value is not None:
                self._board.add_scalar(f"learner/{name}", value, frames)
        counts = list(actions)
        if sum(counts):
            self._board.add_histogram_raw(
                f"{self._level}/actions",
                min=-0.5,
                max=len(counts) - 0.5,
                num=sum(counts),
                sum=sum(action * count for action, count in enumerate(counts)),
                sum_squares=sum(action**2 * count for action, count in enumerate(counts)),
                bucket_limits=[action + 0.5 for action in range(len(counts))],
                bucket_counts=counts,
                global_step=frames,
            )
        return row

    def close(self) -> None:
        self._file.close()
        self._board.close()


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


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) and abs(value) < 1e9 else value
