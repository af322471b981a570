"""Gradients that are far beyond all others: one such can spoil what was learned."""

import collections
import statistics
from typing import NamedTuple

_FACTOR = 1e5  # times the usual
_WINDOW, _LEAST = 101, 10  # newest norms that say what is usual, and how many are enough


class Outlier(NamedTuple):
    update: int
    norm: float  # of its gradient
    times: float  # the usual one


class Norms:
    """The newest norms, and which of them stands out: also one of the first, once others came."""

    def __init__(self) -> None:
        self._newest: collections.deque[tuple[int, float]] = collections.deque(maxlen=_WINDOW)
        self._told = -1  # the last update that was told of

    def see(self, update: int, norm: float) -> Outlier | None:
        """Takes in an update's norm; returns the largest that stands out and was not told yet."""
        self._newest.append((update, norm))
        if len(self._newest) < _LEAST:
            return None
        usual = statistics.median(norm for _, norm in self._newest)
        far = [
            Outlier(update, norm, norm / usual)
            for update, norm in self._newest
            if update > self._told and norm > _FACTOR * usual > 0
        ]
        if not far:
            return None
        self._told = far[-1].update
        return max(far, key=lambda one: one.norm)
