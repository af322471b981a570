"""Numbers that are not finite: when an update is not made, what had them, and when a run ends.

One such number in a gradient makes every weight NaN, and with the weights all that is acted and
learned from then on. So an update with one is not made (``Group.step``), on any rank.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from impala_torch.structures import Unroll

MOST_IN_A_ROW = 10  # batches that give no update, before the run ends
_LARGEST_HALF = 65_504
_TERMS = {"pg_loss": "policy gradient", "baseline_loss": "baseline", "entropy_loss": "entropy"}


class NotFinite(RuntimeError):
    """The run cannot go on: its numbers are not finite, again and again."""


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@torch.no_grad()
def weights_are_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """``all_finite``, in one pass where they are: for each time that weights are published."""
    return math.isfinite(float(torch.nn.utils.get_total_norm(tensors))) or all_finite(tensors)


def what_was_not(
    metrics: Mapping[str, torch.Tensor],
    arrays: Unroll[np.ndarray],
    origins: Sequence[str],
    half: bool,
) -> str:
    """What this rank knows of a gradient that was not finite, in words.

    Args:
      metrics: of this rank's loss, [] tensors by name.
      arrays: the batch, [T + 1, B, ...].
      origins: whose unroll each of the B is, in words.
      half: whether gradients travel as float16.
    """
    terms = [
        words for name, words in _TERMS.items() if name in metrics and not _finite(metrics[name])
    ]
    if terms:
        found = [f"not finite: {', '.join(terms)}"]
    elif half:
        found = [
            "this learner's terms are finite: perhaps the gradient is larger than "
            f"{_LARGEST_HALF:,}, more than --gradients_precision=float16 holds"
        ]
    else:
        found = ["this learner's terms are finite: their gradient is not, or another learner's"]
    named = {"reward": arrays.reward, "final value": arrays.final_value}
    if arrays.observation.dtype.kind == "f":
        named["number observed"] = arrays.observation
    for words, array in named.items():
        sizes = np.abs(array).max(axis=(0, *range(2, array.ndim)))  # [B]
        worst = int(sizes.argmax())
        found.append(f"the largest {words} {sizes[worst]:.3g}, of {origins[worst] or 'an actor'}")
    return "; ".join(found)


def _finite(value: torch.Tensor) -> bool:
    return math.isfinite(float(value))
