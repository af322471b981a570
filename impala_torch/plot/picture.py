"""A chart as PNG or SVG, without any display."""

import os
import pathlib
import textwrap
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from impala_torch.flags.errors import UserError
from impala_torch.plot.chart import Chart

_DPI = 120
_INCHES = (8.0, 5.0)

# Text stays text in an SVG; a dollar sign in a run's name is no formula; the same runs make the
# same file.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "impala_torch", "text.parse_math": False}
_LARGE = EngFormatter(sep="")  # 20M for 20 million


def save(chart: Chart, path: pathlib.Path) -> None:
    """Draws into ``path``, whose suffix says the format; whoever looks at the file meanwhile sees
    the old picture or the new one.

    Raises:
      UserError: it cannot be written.
    """
    # The suffix stays last, for it says the format.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with matplotlib.rc_context(_STYLE):
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            _figure(chart).savefig(temporary, dpi=_DPI, metadata=metadata)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"--out={path} cannot be written: {error.strerror}") from error


def _figure(chart: Chart) -> Figure:
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    handles = []
    for line in chart.lines:
        curve = line.curve
        marker = "o" if len(curve.x) == 1 else ""  # a point alone has no line
        handles += axes.plot(curve.x, curve.y, linewidth=1.5, marker=marker)
        if curve.low is not None and curve.high is not None:
            color = handles[-1].get_color()
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
    labels = [textwrap.fill(line.label, 70) for line in chart.lines]
    axes.legend(handles, labels, fontsize="small")
    axes.grid(alpha=0.3)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title)
    axes.xaxis.set_major_formatter(_tick)
    if chart.warnings:
        words = "\n".join(textwrap.fill(f"Caution: {words}", 130) for words in chart.warnings)
        figure.supxlabel(words, fontsize=7, x=0.01, ha="left")
    return figure


def _tick(value: float, _: float = 0.0) -> str:
    """A number at an axis: with a suffix where it is large; but 0.2, and not 200m, hours."""
    return f"{value:g}" if abs(value) < 1 else _LARGE(value)
