"""How far experiments are and how well they did, from their ``metrics.csv``."""

import csv
import dataclasses
import datetime
import io
import json
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from impala_torch.runner import state
from impala_torch.runner.description import Task
from impala_torch.runner.state import Status

_TAIL_BYTES = 4096  # more than a row has
_PIPE_WIDTH = 200  # characters of a line where nobody's window says how many


@dataclasses.dataclass(frozen=True)
class Row:
    """The end of an experiment's metrics.csv."""

    frames: int = 0
    frames_per_sec: float = 0.0


@dataclasses.dataclass(frozen=True)
class Result:
    """What an experiment has reached. Returns are means of the last 100 whole games."""

    task: Task
    status: str
    exit_code: int | None
    frames: int
    hours: float  # of training, over all starts
    best: float | None
    last: float | None


def total_frames(directory: pathlib.Path) -> int:
    """The frames that a run of experiment.py trains for; 0 where it does not say."""
    path = directory / "config.json"
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text())["flags"]["total_environment_frames"])
    except (ValueError, TypeError, KeyError):  # another program's file
        return 0


def newest_row(directory: pathlib.Path) -> Row:
    """Reads only the end of the file, which may be long."""
    path = directory / "metrics.csv"
    if not path.exists():
        return Row()
    with open(path, "rb") as file:
        heading = file.readline().decode(errors="replace")
        file.seek(max(len(heading), path.stat().st_size - _TAIL_BYTES))
        # A row that is still being written ends without a line feed.
        whole = file.read().decode(errors="replace").split("\n")[:-1]
    if not whole:
        return Row()
    row = next(csv.DictReader(io.StringIO(heading + whole[-1])), {})
    frames, rate = _number(row, "frames"), _number(row, "frames_per_sec")
    return Row(int(frames or 0), rate or 0.0)


def result_of(task: Task) -> Result:
    """Reads an experiment's state and numbers."""
    known = state.read(task.directory)
    path = task.directory / "metrics.csv"
    rows: list[dict[str, str]] = []
    if path.exists():
        with open(path, newline="", errors="replace") as file:
            rows = list(csv.DictReader(file))
    returns = [value for row in rows if (value := _return(row)) is not None]
    newest = rows[-1] if rows else {}
    status = str(known.status)
    if known.status is Status.RUNNING and not state.is_running(task.directory):
        status = "broken off"
    return Result(
        task=task,
        status=status,
        exit_code=known.exit_code,
        frames=int(_number(newest, "frames") or 0),
        hours=_number(newest, "hours") or 0.0,
        best=max(returns, default=None),
        last=returns[-1] if returns else None,
    )


def ranked(results: Sequence[Result]) -> list[Result]:
    """The best first; those without a return last, in their order."""
    return sorted(results, key=lambda one: (one.best is None, -(one.best or 0.0)))


def show(tasks: Sequence[Task], title: str) -> None:
    """Prints the table of results, the best first."""
    table = Table(title=title, title_justify="left")
    table.add_column("experiment", overflow="fold")
    for heading in ("best return", "last return", "frames", "time"):
        table.add_column(heading, justify="right")
    table.add_column("state", overflow="fold")
    for one in ranked([result_of(task) for task in tasks]):
        code = f" ({one.exit_code})" if one.status == Status.FAILED else ""
        table.add_row(
            one.task.name,
            "-" if one.best is None else f"{one.best:.2f}",
            "-" if one.last is None else f"{one.last:.2f}",
            f"{one.frames:,}",
            str(datetime.timedelta(seconds=round(3600 * one.hours))),
            one.status + code,
        )
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=width, highlight=False, markup=False).print(table)


def _return(row: dict[str, str]) -> float | None:
    """Of whole games; of the learner's episodes where a level has no other."""
    raw = _number(row, "episode_raw_return")
    return _number(row, "episode_return") if raw is None else raw


def _number(row: dict[str, str], name: str) -> float | None:
    try:
        return float(row.get(name) or "")
    except ValueError:  # not there yet, or another program's file
        return None
