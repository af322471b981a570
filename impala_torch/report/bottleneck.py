"""Where a run is bound, in words and with the figures behind them.

A chain runs as fast as its slowest link: the link that nobody waits for while others wait for it.
So the waits are what tells: learners that wait for data are fed too slowly, actors that wait for
credit are taken from too slowly. Learners share their data: whose actor it is makes no difference.
"""

import dataclasses
from collections.abc import Sequence

# A share of time below which waiting is only the chain's normal slack.
_WAITS = 0.2
# Where both ends of one endpoint idle more than half their time, neither is what the other lacks.
_BOTH_WAIT = 0.5
# Above this share of an update the averaging of gradients is worth a word.
_ALLREDUCE = 0.25
# A link that carries so much of its speed is full: headers and bursts take the rest.
_LINK = 0.8


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one learner knows of a stretch of time."""

    batch_wait_share: float  # of the learner's time, spent waiting for a batch; 0 to 1
    allreduce_share: float  # of its time between waits, spent averaging gradients; 0 to 1
    actors_waiting_share: float | None  # mean of its actors' time spent waiting; None unknown
    bytes_per_sec: float | None = None  # that its endpoint receives
    link_bytes_per_sec: float | None = None  # that its network interface can carry; None unknown
    connected: int = 1  # actors
    expected: int = 1


def diagnose(learners: Sequence[Figures]) -> str:
    """One line on where the run of these learners is bound."""
    connected = sum(one.connected for one in learners)
    expected = sum(one.expected for one in learners)
    if not connected:
        return f"waiting: no actor is connected (0 of {expected})"
    # The link first: it makes learners wait for data, and more actors would make it worse.
    for index, one in enumerate(learners):
        if one.bytes_per_sec and one.link_bytes_per_sec:
            share = one.bytes_per_sec / one.link_bytes_per_sec
            if share > _LINK:
                return (
                    f"endpoint link full: learner {index} receives "
                    f"{one.bytes_per_sec / 1e6:.0f} of {one.link_bytes_per_sec / 1e6:.0f} MB/s; "
                    "another learner, or a faster network, helps"
                )
    # The same on a link whose speed is not known, or a slow way beyond it. Each learner by itself:
    # hungry ones and others with idle actors, taken together, only look like this.
    for index, one in enumerate(learners):
        if min(one.batch_wait_share, one.actors_waiting_share or 0.0) > _BOTH_WAIT:
            return (
                f"both wait at learner {index}: it for data {one.batch_wait_share:.0%} of its "
                f"time, its actors for it {one.actors_waiting_share:.0%}; a faster network between "
                "them, or relays on the actors' hosts, help"
            )
    missing = f" ({expected - connected} of {expected} are missing)" if connected < expected else ""
    learner_waits = _mean([one.batch_wait_share for one in learners])
    known = [one for one in learners if one.actors_waiting_share is not None]
    waits = [one.actors_waiting_share or 0.0 for one in known for _ in range(one.connected)]
    actors_wait = _mean(waits) if waits else 0.0
    allreduce = _mean([one.allreduce_share for one in learners])
    if learner_waits > max(_WAITS, actors_wait):
        return (
            f"actor-bound: the learner waits for data {learner_waits:.0%} of its time; more "
            f"actors or environments help{missing}"
        )
    if allreduce > _ALLREDUCE:
        return (
            f"allreduce {allreduce:.0%} of an update: learners wait for each other or for their "
            "network; larger batches or a faster network help, more learners do not"
        )
    if actors_wait > _WAITS:
        return (
            f"learner-bound: actors wait for credits {actors_wait:.0%} of their time; more actors "
            "will not help, a faster or another learner does"
        )
    return (
        f"balanced: the learner waits for data {learner_waits:.0%} of its time, actors for credits "
        f"{actors_wait:.0%}{missing}"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
