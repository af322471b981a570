"""From runs to what is to be drawn: lines with their labels, axes, and words below."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from impala_torch.flags.errors import UserError
from impala_torch.plot import curves, grouping, protocols
from impala_torch.plot.columns import RETURN
from impala_torch.plot.curves import Curve
from impala_torch.plot.runs import Run
from impala_torch.plot.tables import IMPALA_TORCH
from impala_torch.report import rows


class NoData(UserError):
    """There is nothing to draw, so far."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose; see the flags of the same names."""

    x: str = "frames"
    column: str = RETURN
    smooth: int = 1
    group: str = "setting"
    band: str = "minmax"
    repeats: int = 0
    title: str = ""
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    label: str
    curve: Curve


@dataclasses.dataclass(frozen=True)
class Chart:
    """A picture in words and numbers."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]  # belong under the picture: whoever sees it must know
    notes: tuple[str, ...]  # for the one who draws it


def chart(runs: Sequence[Run], options: Options) -> Chart:
    """Works out what to draw.

    Raises:
      UserError: a run has no such column, or labels do not fit.
      NoData: no run has a point.
    """
    notes = [note for run in runs for note in run.notes]
    by_run = {run.table.path: _curve(run, options, notes) for run in runs}
    few = [words for run in runs if (words := _few_games(run, options))]
    drawn = [run for run in runs if len(by_run[run.table.path].x)]
    if not drawn:
        which = ", ".join(str(run.table.path) for run in runs)
        raise NoData(f"there is nothing of '{options.column}' to draw yet in {which}")
    for run in runs:
        if run not in drawn:
            notes.append(f"{run.table.path} has nothing of '{options.column}' yet: left out")
    lines: list[Line] = []
    for group in _labelled(grouping.grouped(drawn, options.group), options.labels):
        lines += _lines(group, [by_run[run.table.path] for run in group.runs], options, notes)
    levels = {run.level for run in drawn}
    common = levels.pop() if len(levels) == 1 else None
    return Chart(
        options.title or common or "",
        options.x if options.x != "hours" else "hours of training",
        _y_label(options),
        tuple(lines),
        (*protocols.warnings(drawn), *few),
        tuple(notes),
    )


def _curve(run: Run, options: Options, notes: list[str]) -> Curve:
    """The points of a run; none while its file has no rows."""
    if not len(run.table):
        return Curve(np.empty(0), np.empty(0))
    x = run.column(options.x, options.repeats)
    y = run.column(options.column, options.repeats)
    notes += [one.supposed for one in (x, y) if one.supposed]
    games = _games(run, options.column)
    values = y.values
    if games is not None and games.max() >= rows.GAMES:  # those of fewer say little
        values = np.where(games >= rows.GAMES, values, np.nan)
    points, replaced = curves.curve(x.values, values, options.smooth)
    if replaced:
        notes.append(
            f"{run.table.path}: {replaced} row(s) left out that a later start went through again"
        )
    return points


def _games(run: Run, column: str) -> np.ndarray | None:
    """How many games each row's mean is of, [N], of those that have a mean; None of other
    columns, and of other programs."""
    if run.program != IMPALA_TORCH or column not in (rows.RETURN, rows.EPISODES):
        return None
    table = run.table
    names = [name for name in (*rows.COUNTS.values(), "games", column) if name in table.names]
    told = {name: table.column(name) for name in names}
    counts = []
    for index in range(len(table)):
        row = {name: values[index] for name, values in told.items() if np.isfinite(values[index])}
        counts.append(rows.games_in(row, column) if column in row else 0)
    return np.array(counts)


def _few_games(run: Run, options: Options) -> str:
    """What to say of a run that has no mean of enough games yet."""
    games = _games(run, options.column) if len(run.table) else None
    if games is None or not 0 < games.max() < rows.GAMES:
        return ""
    return f"means of at most {games.max()} games, not of {rows.GAMES}: {run.folder.name}"


def _labelled(groups: list[grouping.Group], labels: Sequence[str]) -> list[grouping.Group]:
    if not labels:
        return groups
    if len(labels) != len(groups):
        named = "; ".join(group.label for group in groups)
        raise UserError(
            f"--labels has {len(labels)} name(s) for {len(groups)} line(s), which are: {named}"
        )
    return [group._replace(label=label) for group, label in zip(groups, labels, strict=True)]


def _lines(
    group: grouping.Group, members: Sequence[Curve], options: Options, notes: list[str]
) -> list[Line]:
    """A group's line; or one for each of its runs, where they have no x in common."""
    if len(members) == 1:
        return [Line(group.label, members[0])]
    whole = curves.together(members, options.band)
    if whole is None:
        notes.append(
            f"{group.label}: its {len(members)} runs have no {options.x} in common yet, so they "
            "are drawn one by one"
        )
        return [Line(f"{group.label} #{i}", one) for i, one in enumerate(members, 1)]
    if whole.x[-1] < 0.95 * max(one.x[-1] for one in members):
        notes.append(
            f"{group.label}: the mean ends at {whole.x[-1]:,.6g} {options.x}, where the shortest "
            "of its runs does"
        )
    band = {"minmax": ", lowest to highest", "std": ", ±1 standard deviation", "none": ""}
    return [Line(f"{group.label} (mean of {len(members)} runs{band[options.band]})", whole)]


def _y_label(options: Options) -> str:
    known = {RETURN: "mean return of whole games", "episode_return": "mean return of episodes"}
    label = known.get(options.column, options.column)
    return f"{label}, mean of {options.smooth} rows" if options.smooth > 1 else label
