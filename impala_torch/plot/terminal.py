"""A chart in the terminal's characters."""

import textwrap

import plotext

from impala_torch.plot.chart import Chart, Line

_COLORS = ("blue+", "orange", "green+", "red+", "magenta+", "cyan+", "gray+", "yellow")
_LEAST_HEIGHT = 10
# From which x on, what it is divided by, and what the axis then says.
_UNITS = ((1e9, 1e9, ", billions"), (1e6, 1e6, ", millions"), (1e4, 1e3, ", thousands"))


def text(chart: Chart, width: int, height: int, color: bool) -> str:
    """Draws a chart with its legend below.

    Args:
      chart: what to draw.
      width, height: of the whole, in characters; the curves have some rows even if it is lower.
      color: with the terminal's codes for colours.
    """
    legend = []
    for number, line in enumerate(chart.lines):
        rows = "\n".join(textwrap.wrap(_named(line, number), width, subsequent_indent="   "))
        legend.append(str(plotext.colorize(rows, _color(number))) if color else rows)
    words = [textwrap.fill(f"Caution: {words}", width) for words in chart.warnings]
    below = "\n".join([*legend, *words])
    rows_left = height - below.count("\n") - 2
    return f"{_plot(chart, width, max(_LEAST_HEIGHT, rows_left), color)}\n{below}"


def _plot(chart: Chart, width: int, height: int, color: bool) -> str:
    figure = plotext.figure.clear()
    plotext.terminal.limit(False, False)
    figure.theme("colorless").plot_size(width, height)
    unit, unit_name = _unit(chart)
    for number, line in enumerate(chart.lines):
        curve = line.curve
        x = curve.x / unit
        for edge in (curve.low, curve.high):
            if edge is not None:
                few = slice(None, None, max(1, len(x) // (width // 2)))
                dots = plotext.marker("·", _color(number))
                figure.draw(figure.signal(x[few].tolist(), edge[few].tolist(), marker=dots))
        marker = plotext.marker("braille", _color(number))
        figure.draw(figure.signal(x.tolist(), curve.y.tolist(), marker=marker).lines())
    figure.title(chart.title)
    figure.label(f"{chart.x_label}{unit_name}", "x")
    drawn = figure.build().string(colorless=not color).rstrip()
    return f"{chart.y_label}\n{drawn}"


def _unit(chart: Chart) -> tuple[float, str]:
    """What x is divided by, so that its ticks are short."""
    largest = max(abs(line.curve.x[-1]) for line in chart.lines)
    return next(((unit, name) for least, unit, name in _UNITS if largest >= least), (1.0, ""))


def _named(line: Line, number: int) -> str:
    return f"{'─' * 2} {line.label}: {line.curve.y[-1]:,.6g} at {line.curve.x[-1]:,.6g}"


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]
