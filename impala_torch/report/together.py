"""From what each learner tells to the numbers of the run: as one learner of all would tell them.

Pure functions of what ranks have gathered, by rank.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from impala_torch.structures import EpisodeResult


def metrics_of(everyone: Sequence[dict[str, Any]], reduction: str) -> dict[str, float]:
    """The loss's metrics over all ranks' batches together.

    Args:
      everyone: what ``Tally.take`` gave, of each rank.
      reduction: "sum" or "average": how the ranks' gradients, and so their losses, become one.
    """
    ranks = [one["metrics"] for one in everyone]
    found = {}
    for name in ranks[0]:
        values = [rank[name] for rank in ranks]
        adds_up = name.endswith("_loss") and reduction == "sum"
        found[name] = sum(values) if adds_up else sum(values) / len(values)
    return found


def actions_of(everyone: Sequence[dict[str, Any]]) -> list[int]:
    """How often each action was learned from, [A], over all ranks."""
    return np.sum([one["actions"] for one in everyone], axis=0).tolist()


def episodes_of(
    everyone: Sequence[Sequence[tuple[int, Sequence[Any]]]],
) -> list[EpisodeResult]:
    """All ranks' episodes in the order in which one learner would have heard of them.

    Ranks make the same updates, so the updates at which each was told are a clock that all share;
    those of one update are spread evenly over it.

    Args:
      everyone: of each rank, its episodes as (updates, values), in their order.
    """
    if len(everyone) == 1:  # they are in order
        return [EpisodeResult(*values) for _, values in everyone[0]]
    timed = []
    for rank, told in enumerate(everyone):
        counts: dict[int, int] = {}
        for updates, _ in told:
            counts[updates] = counts.get(updates, 0) + 1
        seen: dict[int, int] = {}
        for updates, values in told:
            place = (seen.get(updates, 0) + 0.5) / counts[updates]
            seen[updates] = seen.get(updates, 0) + 1
            timed.append((updates, place, rank, EpisodeResult(*values)))
    timed.sort(key=lambda one: one[:3])
    return [result for *_, result in timed]


def mean_of(everyone: Sequence[dict[str, Any]], name: str) -> float | None:
    """The mean of a number over the ranks that have it; None where nobody does."""
    known = [one[name] for one in everyone if one[name] is not None]
    return sum(known) / len(known) if known else None
