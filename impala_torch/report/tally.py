"""What one learner adds up between two rows of ``metrics.csv``, beside its work."""

import time
from types import TracebackType
from typing import Any

import numpy as np
import torch

from impala_torch.structures import Unroll


class Tally:
    """Sums over the updates and batches since ``take``."""

    def __init__(self, num_actions: int) -> None:
        self._num_actions = num_actions
        self._clear()

    def _clear(self) -> None:
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None  # of what ``_names`` are; on the learner's device
        self._norms = 0.0
        self._steps = 0
        self._lags: list[float] = []
        self._actions = np.zeros(self._num_actions, np.int64)
        self._waited = 0.0

    def stepped(self, metrics: dict[str, torch.Tensor], norm: float) -> None:
        """Takes in a step of the optimizer. Values stay where they are until ``take``.

        Args:
          metrics: of the whole step, [] tensors by name, the same names at each.
          norm: of the reduced gradient before clipping.
        """
        values = torch.stack([value.float() for value in metrics.values()])
        if self._sums is None:
            self._names, self._sums = list(metrics), values
        else:
            self._sums += values
        self._norms += norm
        self._steps += 1

    def learned_from(self, arrays: Unroll[np.ndarray], updates: int) -> None:
        """Takes in a batch that is learned from, ``updates`` updates before it."""
        self._lags.append(updates - float(arrays.weights_version.mean()))
        actions = arrays.action[:-1].ravel()
        self._actions += np.bincount(actions, minlength=self._num_actions)

    def waiting(self) -> "_Stopwatch":
        """Context in which the learner waits for data."""
        return _Stopwatch(self)

    def add_wait(self, secs: float) -> None:
        self._waited += secs

    def take(self) -> dict[str, Any]:
        """The numbers since the last call, ready for JSON.

        Returns:
          ``metrics``: means over the steps, by name; ``lag``: updates between acting and learning,
          mean, None without any; ``batches`` behind it; ``actions``: how often each was learned
          from, [A];
          ``waited``: seconds.
        """
        metrics = {}
        if self._sums is not None:
            means = (self._sums / self._steps).tolist()
            metrics = dict(zip(self._names, means, strict=True))
            metrics["grad_norm"] = self._norms / self._steps
        taken = {
            "metrics": metrics,
            "lag": sum(self._lags) / len(self._lags) if self._lags else None,
            "batches": len(self._lags),
            "actions": self._actions.tolist(),
            "waited": self._waited,
        }
        self._clear()
        return taken


class _Stopwatch:
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tally.add_wait(time.monotonic() - self._start)
