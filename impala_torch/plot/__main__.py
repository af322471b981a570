"""Draws the curves of runs: of impala_torch, TorchBeast and moolib.

    python -m impala_torch.plot logs/PongNoFrameskip-v4/*        # plot.png beside the first run
    python -m impala_torch.plot 'logs/Pong*' --x=hours --out=pong.svg
    python -m impala_torch.plot logs/latest --terminal --watch=5

RUN is a run's folder, its table (metrics.csv; logs.csv of TorchBeast; logs.tsv of moolib), a
folder with runs below it, or a wildcard of these.
"""

import argparse
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence

from impala_torch.flags.errors import UserError
from impala_torch.plot import curves, grouping, runs
from impala_torch.plot.chart import Chart, NoData, Options, chart
from impala_torch.plot.columns import RETURN

_SUFFIXES = (".png", ".svg")
_CLEAR = "\033[H\033[2J"  # the cursor home, the screen empty


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    try:
        options = _options(flags)
        if not flags.watch:
            _draw(flags, options)
            return 0
        _watch(flags, options)
    except UserError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # How --watch is meant to end; a picture that was being drawn is broken off.
        return 0 if flags.watch else 130
    return 0


def _watch(flags: argparse.Namespace, options: Options) -> None:
    """Draws again and again, with the runs that have come since; Ctrl-C ends it."""
    while True:
        try:
            _draw(flags, options)
        except NoData as error:
            print(f"waiting: {_printable(str(error))}", file=sys.stderr)
        time.sleep(flags.watch)


def _draw(flags: argparse.Namespace, options: Options) -> None:
    paths = runs.find(flags.runs)
    picture = chart([runs.load(path) for path in paths], options)
    if flags.terminal:
        _show(picture, clear=bool(flags.watch))
    if flags.out or not flags.terminal:
        from impala_torch.plot.picture import save  # matplotlib takes a second to load

        out = pathlib.Path(flags.out or paths[0].parent / "plot.png")
        save(picture, out)
        print(f"{_printable(str(out))}: {len(picture.lines)} line(s) of {len(paths)} run(s)")
    if not (flags.terminal and sys.stdout.isatty()):  # where they stand under the curves
        for words in picture.warnings:
            print(f"warning: {_printable(words)}", file=sys.stderr)
    for words in picture.notes:
        print(f"note: {_printable(words)}", file=sys.stderr)
    sys.stdout.flush()


def _show(picture: Chart, clear: bool) -> None:
    from impala_torch.plot.terminal import text

    terminal = sys.stdout.isatty()
    columns, rows = shutil.get_terminal_size()
    color = terminal and not os.environ.get("NO_COLOR")
    # Below it come the notes, and the line that the shell prompts in.
    drawn = text(picture, columns, rows - len(picture.notes) - 2, color)
    print(f"{_CLEAR if clear and terminal else ''}{drawn}")


def _options(flags: argparse.Namespace) -> Options:
    """Raises UserError where a value is impossible."""
    if flags.watch is not None and not flags.watch > 0:
        raise UserError(f"--watch must be more than 0 seconds, not {flags.watch:g}")
    if flags.smooth < 1:
        raise UserError(f"--smooth must be 1 row or more, not {flags.smooth}")
    if flags.repeats < 0:
        raise UserError(f"--repeats must not be negative, and is {flags.repeats}")
    if flags.out and pathlib.Path(flags.out).suffix not in _SUFFIXES:
        raise UserError(f"--out={flags.out} must end in {' or '.join(_SUFFIXES)}")
    labels = tuple(label.strip() for label in flags.labels.split(",")) if flags.labels else ()
    return Options(
        x=flags.x,
        column=flags.column,
        smooth=flags.smooth,
        group=flags.group,
        band=flags.band,
        repeats=flags.repeats,
        title=flags.title,
        labels=labels,
    )


def _printable(words: str) -> str:
    """What a file said, without what a terminal would take for a command."""
    return "".join(char if char.isprintable() else "?" for char in words)


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="python -m impala_torch.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("runs", nargs="+", metavar="RUN")
    add("--x", default="frames", help="frames, hours, updates, or any column (default: frames)")
    add(
        "--column",
        default=RETURN,
        help=f"what to draw: any column (default: {RETURN}, the mean return of whole games)",
    )
    add("--smooth", type=int, default=1, metavar="N", help="draw the mean of the last N rows")
    add(
        "--group",
        choices=grouping.GROUPS,
        default="setting",
        help="runs that make one line: those whose flags differ in the seed only (default), "
        "none, or those in one folder",
    )
    add(
        "--band",
        choices=curves.BANDS,
        default="minmax",
        help="round the mean of a group: from the lowest to the highest run (default), one "
        "standard deviation to each side, or none",
    )
    add("--title", default="", help="above the picture (default: the level)")
    add("--labels", default="", metavar="A,B", help="names of the lines, in their order")
    add("--out", default="", metavar="FILE", help="a .png or .svg (default: plot.png beside RUN)")
    add("--terminal", action="store_true", help="draw in the terminal; with --out, a file too")
    add(
        "--watch",
        type=float,
        metavar="SECS",
        help="draw again every so many seconds, until Ctrl-C",
    )
    add(
        "--repeats",
        type=int,
        default=0,
        metavar="N",
        help="environment frames per agent step of TorchBeast's and moolib's runs (default: 4, "
        "or what moolib's meta.json says)",
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
