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

from impala_torch.report import rows
from impala_torch.report.rows import EPISODES, RETURN
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
    """What an experiment has reached. Returns are means of the last 100 whole games; where the
    last is of fewer, ``games`` says of how many."""

    task: Task
    status: str
    exit_code: int | None
    frames: int
    hours: float  # of training, over all starts
    best: float | None  # of 100 games
    last: float | None
    games: int = rows.GAMES  # that ``last`` is of


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
    if not path.is_file():
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
    read = rows.read(task.directory / "metrics.csv")
    # Of whole games; of the learner's episodes where a level has no other.
    column = RETURN if any(RETURN in row for row in read) else EPISODES
    means = [row for row in read if column in row]
    newest = read[-1] if read else {}
    status = str(known.status)
    if known.status is Status.RUNNING and not state.is_running(task.directory):
        status = "broken off"
    return Result(
        task=task,
        status=status,
        exit_code=known.exit_code,
        frames=int(newest.get("frames", 0)),
        hours=newest.get("hours", 0.0),
        best=max((row[column] for row in rows.full(means, column)), default=None),
        last=means[-1][column] if means else None,
        games=rows.games_in(means[-1], column) if means else 0,
    )


def ranked(results: Sequence[Result]) -> list[Result]:
    """The best first; then those without a mean of enough games, by the last; then the others."""

    def place(one: Result) -> tuple[bool, bool, float]:
        return one.best is None, one.last is None, -_first(one.best, one.last)

    return sorted(results, key=place)


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
            _last(one),
            f"{one.frames:,}",
            str(datetime.timedelta(seconds=round(3600 * one.hours))),
            one.status + code,
        )
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=width, highlight=False, markup=False).print(table)


def _first(*values: float | None) -> float:
    return next((value for value in values if value is not None), 0.0)


def _last(one: Result) -> str:
    if one.last is None:
        return "-"
    return f"{one.last:.2f}" + (f" ({one.games} games)" if one.games < rows.GAMES else "")


def _number(row: dict[str, str], name: str) -> float | None:
    try:
        return float(row.get(name) or "")
    except ValueError:  # not there yet, or another program's file
        return None
