"""Arithmetic of curves: rows that count, running means, mean and band of several runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BANDS = ("minmax", "std", "none")
_POINTS = 1000  # of the common grid of a group


class Curve(NamedTuple):
    """Points with x rising, float64 [N] each; the band's edges where there is one."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def curve(x: np.ndarray, y: np.ndarray, window: int = 1) -> tuple[Curve, int]:
    """The points of a run.

    A run that went on from a checkpoint, or started over in the same file, comes by the same x
    again: what was written later counts. Rows without a y are left out.

    Args:
      x, y: by row, [N]; NaN where there is none.
      window: each point is the mean of so many last ones.

    Returns:
      The curve, and how many rows a later start has replaced.
    """
    known = np.isfinite(x)
    x, y = x[known], y[known]
    # A row counts if all rows after it have a greater x.
    after = np.minimum.accumulate(np.append(x[1:], np.inf)[::-1])[::-1]
    kept = x < after
    replaced = int((x > after).sum())
    kept &= np.isfinite(y)
    return Curve(x[kept], running_mean(y[kept], window)), replaced


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Means of the last ``window`` values, of fewer at the beginning; [N] -> [N]."""
    if window <= 1 or len(y) == 0:
        return y
    sums = np.cumsum(np.insert(y, 0, 0.0))
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def together(curves: Sequence[Curve], band: str) -> Curve | None:
    """Mean and band of several curves, on a common grid of x.

    The grid spans what all of them have; between their points, straight lines are drawn.

    Args:
      curves: at least two, with a point each.
      band: minmax (lowest to highest), std (mean -/+ one standard deviation, of the n - 1
        kind), or none.

    Returns:
      None if there is no x that all of them have.
    """
    start = max(one.x[0] for one in curves)
    end = min(one.x[-1] for one in curves)
    if start >= end:
        return None
    grid = np.linspace(start, end, _POINTS)
    values = np.stack([np.interp(grid, one.x, one.y) for one in curves])
    mean = values.mean(axis=0)
    if band == "minmax":
        return Curve(grid, mean, values.min(axis=0), values.max(axis=0))
    if band == "std":
        deviation = values.std(axis=0, ddof=1)
        return Curve(grid, mean, mean - deviation, mean + deviation)
    return Curve(grid, mean)
