"""What the runner says while it runs: a line for each event, and on a terminal a bar."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from impala_torch.runner import results, state
from impala_torch.runner.description import Task

_REFRESH_SECS = 2.0


class Display:
    """Writes to stderr; the table of results alone goes to stdout.

    Args:
      quiet: say only what failed.
      total: experiments of the run.
      done: how many of them had finished before.
    """

    def __init__(self, quiet: bool, total: int, done: int) -> None:
        self._quiet, self._total, self._done = quiet, total, done
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._failed = 0
        self._next = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._line = self._bar.add_task("", total=float(total), completed=done)

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, words: str) -> None:
        """An event in a line."""
        if not self._quiet:
            self._console.print(f"[{time.strftime('%H:%M:%S')} runner] {words}")

    def ended(self, task: Task, known: state.State) -> None:
        """Tells how an experiment ended; of a failed one also the end of its output."""
        if known.status is state.Status.FINISHED:
            self._done += 1
        if known.status is not state.Status.FAILED:
            self.say(f"{known.status}: {task.name}, after {known.secs:.0f} s")
            return
        self._failed += 1
        where = task.directory / state.LOG
        self._console.print(
            f"FAILED: {task.name}, exit code {known.exit_code}; the end of {where}:"
        )
        for line in state.tail(task.directory):
            self._console.print(f"    {line}")

    def progress(self, running: Sequence[Task]) -> None:
        """Brings the bar up to date, not too often."""
        if self._bar.disable or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _REFRESH_SECS
        done, rate = float(self._done + self._failed), 0.0
        for task in running:
            row = results.newest_row(task.directory)
            total = results.total_frames(task.directory)
            rate += row.frames_per_sec
            done += min(row.frames / total, 1.0) if total else 0.0
        failed = f", {self._failed} failed" if self._failed else ""
        words = (
            f"{self._done} of {self._total} finished{failed}, {len(running)} running, "
            f"{rate:,.0f} frames/s"
        )
        self._bar.update(self._line, completed=done, description=words)
