"""The rows of a run's ``metrics.csv``, as whoever judges a run by them reads them.

Nothing but Python's own library is imported: small programs read runs too.
"""

import csv
import math
import pathlib
from collections.abc import Mapping, Sequence

GAMES = 100  # a mean of so many last games says something of the agent; one of fewer, of chance
RETURN, EPISODES = "episode_raw_return", "episode_return"  # of whole games, of learner's episodes
# The columns that say how many these are means of.
COUNTS = {RETURN: "games_in_mean", EPISODES: "episodes_in_mean"}

Row = Mapping[str, float]


def read(path: pathlib.Path) -> list[Row]:
    """The rows that count, oldest first, of each column that is a number there; none without a
    file.

    Learners that died go on from a checkpoint behind their last rows: what they went through
    again counts as it was the second time. A row that is not whole is left out.
    """
    if not path.is_file():  # a device in its place could be read for ever
        return []
    text = path.read_text(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    columns = next(csv.reader(lines[:1]), [])
    rows = [
        dict(_numbers(zip(columns, cells, strict=True)))
        for cells in csv.reader(lines[1:])
        if len(cells) == len(columns)
    ]
    return counting(rows)


def counting(rows: Sequence[Row]) -> list[Row]:
    """Of rows of a file, those that no later row has gone through again."""
    kept: list[Row] = []
    least = math.inf
    for row in reversed(rows):
        if row.get("frames", -math.inf) <= least:  # another program's may have none
            least = row.get("frames", least)
            kept.append(row)
    return kept[::-1]


def games_in(row: Row, column: str = RETURN) -> int:
    """How many games, or episodes, a row's mean in ``column`` is of; at most GAMES.

    Rows of before it was written down may have as many as the run's games.
    """
    return int(row.get(COUNTS[column], min(row.get("games", GAMES), GAMES)))


def full(rows: Sequence[Row], column: str = RETURN) -> list[Row]:
    """The rows whose mean in ``column`` is of GAMES games: the ones that a run is judged by."""
    return [row for row in rows if column in row and games_in(row, column) >= GAMES]


def _numbers(cells: zip) -> list[tuple[str, float]]:
    found = []
    for name, cell in cells:
        try:
            number = float(cell)
        except ValueError:  # an empty one
            continue
        if math.isfinite(number):  # what is none can be neither best nor reached
            found.append((name, number))
    return found
