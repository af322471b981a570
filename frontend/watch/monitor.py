"""The live view of a run, in its tmux window 'monitor'.

python -m frontend.watch.monitor RECORD
"""

import collections
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from frontend import record
from frontend.commands import LEARNERS
from frontend.hosts import tmux
from frontend.watch import endpoints, status
from frontend.watch.status import SetStatus
from impala_torch.flags.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_HISTORY = 120  # returns that the sparkline shows at most
_PLAIN_SECS = 10.0  # between blocks where there is no terminal
_SPARE_LINES = 1  # below the view, for the last words
_NAME_WIDTH = 6  # what names of hosts are cut down to at most, for the numbers' sake
_TROUBLE = ("not connected", "gone", "no answer", "stalled", "silent")
_BARS = "▁▂▃▄▅▆▇█"


def watch(
    poll: Callable[[], Sequence[SetStatus]],
    is_over: Callable[[], bool],
    out: TextIO = sys.stdout,
    interval_secs: float = 2.0,
    title: str = "",
) -> None:
    """Shows a run until it is over or Ctrl-C: live on a terminal, else a block now and then.

    Args:
      poll: the status of its worker sets.
      is_over: whether the run has ended.
      out: where to show it.
      interval_secs: between two looks.
      title: what the run is called.
    """
    view = _View(title)
    try:
        if out.isatty():
            _watch_live(view, poll, is_over, out, interval_secs)
        else:
            _watch_plainly(view, poll, is_over, out, interval_secs)
    except KeyboardInterrupt:
        return
    print("the run has ended", file=out, flush=True)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as bars between their least and largest."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high == low:
        return _BARS[0] * len(shown)
    steps = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * steps)] for value in shown)


class _View:
    """What is remembered between two looks."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begun = time.monotonic()
        self._returns: collections.deque[float] = collections.deque(maxlen=_HISTORY)
        self._games = -1

    def see(self, sets: Sequence[SetStatus]) -> None:
        """Takes the mean return in, once for each game or more that has ended since."""
        for one in sets:
            mean = one.status.get("episode_raw_return") if one.status else None
            if one.status and mean is not None:
                games = one.status.get("games", 0)
                if games != self._games and math.isfinite(mean):
                    self._returns.append(mean)
                    self._games = games
                return

    def plain(self, sets: Sequence[SetStatus]) -> str:
        """The run as text."""
        return "\n".join([self._header(), status.table(sets), *self._curve(40)])

    def rich(self, sets: Sequence[SetStatus], width: int, height: int) -> "Group":
        """The run as what fits a terminal."""
        from rich.console import Group
        from rich.text import Text

        head = [self._header(), *_folded(status.summary(sets).splitlines(), width)]
        head += self._curve(width - 30)
        notes = _that_fit_of_warnings(status.problems(sets), width, max(2, height // 4))
        learners = status.learner_rows(sets)
        headings = 1  # of the actors; the learners' is among their rows
        room = height - len(head) - len(notes) - len(learners) - headings - _SPARE_LINES
        rows, rest = _that_fit(sets, max(1, room))

        def line(words: str, style: str = "") -> Text:
            return Text(words, style, no_wrap=True, overflow="ellipsis")

        return Group(
            line(head[0], "bold"),
            *map(line, head[1:]),
            *(line(words, "yellow") for words in notes),
            _cells(learners, width),
            _cells(rows, width),
            *([line(rest)] if rest else []),
        )

    def _header(self) -> str:
        watched = status.duration(time.monotonic() - self._begun)
        return f"{self._title}   {time.strftime('%H:%M:%S')}   watched for {watched}"

    def _curve(self, width: int) -> list[str]:
        if len(self._returns) < 2:
            return []
        low, high = min(self._returns), max(self._returns)
        return [f"return {sparkline(self._returns, max(8, width))} {low:.1f} to {high:.1f}"]


def _watch_live(
    view: _View,
    poll: Callable[[], Sequence[SetStatus]],
    is_over: Callable[[], bool],
    out: TextIO,
    interval_secs: float,
) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=out, highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not is_over():
            sets = poll()
            view.see(sets)
            # The terminal's own size: it may have changed, and need not be that of our output.
            console.width, console.height = _size(out)
            live.update(view.rich(sets, console.width, console.height), refresh=True)
            time.sleep(interval_secs)


def _watch_plainly(
    view: _View,
    poll: Callable[[], Sequence[SetStatus]],
    is_over: Callable[[], bool],
    out: TextIO,
    interval_secs: float,
) -> None:
    told = 0.0
    while not is_over():
        sets = poll()
        view.see(sets)
        if time.monotonic() - told >= _PLAIN_SECS:
            told = time.monotonic()
            print(view.plain(sets), file=out, flush=True)
        time.sleep(interval_secs)


def _size(out: TextIO) -> tuple[int, int]:
    size = os.get_terminal_size(out.fileno())
    return size.columns or 80, size.lines or 24  # some terminals say 0


def _folded(lines: Sequence[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, width)]


def _that_fit_of_warnings(warnings: Sequence[str], width: int, room: int) -> list[str]:
    """Lines of so many warnings, the first ones first, and words on the others."""
    lines: list[str] = []
    for index, words in enumerate(warnings):
        more = _folded([f"warning: {words}"], width)
        last = index == len(warnings) - 1
        if len(lines) + len(more) > room - (not last):
            return [*lines, f"... {len(warnings) - index} more warning(s)"]
        lines += more
    return lines


def _cells(rows: Sequence[Sequence[str]], width: int) -> "Table":
    """Rows as a table of rich's, the first of them the heading.

    Where ``width`` does not suffice, names are cut rather than numbers.
    """
    from rich.table import Table
    from rich.text import Text

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = 2 if sum(widths) + 2 * len(widths) <= width else 1
    excess = max(0, sum(widths) + gap * len(widths) - width)
    for index, name in enumerate(rows[0]):
        if name in ("host", "address"):
            cut = min(excess, max(0, widths[index] - _NAME_WIDTH))
            widths[index] -= cut
            excess -= cut
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold")
    for name, wide in zip(rows[0], widths, strict=True):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=wide)
    for row in rows[1:]:
        state = row[-1]
        troubled = any(word in state for word in _TROUBLE)
        # As Text: a str would be read as markup, and names are what other hosts say.
        table.add_row(*map(Text, row), style="red" if troubled else None)
    return table


def _that_fit(sets: Sequence[SetStatus], room: int) -> tuple[list[Sequence[str]], str]:
    """Rows of so many actors, the troubled ones first, and words on the others."""
    states: dict[tuple[int, int], str] = {}
    lengths = {one.index: one.unroll_length for one in sets}
    for index, task, _, actor in status.actors_of(sets):
        state = "not connected" if actor is None else status.actor_state(actor, lengths[index])
        states[index, task] = state.split(" for ")[0]
    ranks = {"not connected": 0, "gone": 1, "silent": 1}
    order = sorted(states, key=lambda key: (ranks.get(states[key], 2), key))
    if len(order) <= room:
        return status.actor_rows(sets, order), ""
    shown, hidden = order[: room - 1], order[room - 1 :]
    counts = collections.Counter(states[key] for key in hidden)
    words = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return status.actor_rows(sets, set(shown)), f" ... {len(hidden)} more: {words}"


def main(argv: list[str]) -> int:
    try:
        run = record.load(argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    session = tmux.Session(run.options.tmux_sess)

    def is_over() -> bool:
        # The learners' window closes after a clean end, and stays with its exit code after another.
        return all(
            window.name != LEARNERS or window.exit_code is not None for window in session.windows()
        )

    title = f"{run.config.level_name}, {run.config.agent_name}, run {run.run_id}"
    watch(lambda: endpoints.ask_all(run), is_over, title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
