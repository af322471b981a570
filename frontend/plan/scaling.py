"""How fast a run of n learners with m actors each will be: a model of its parts, pure functions.

Every part of a run has a rate that it cannot exceed; the slowest binds. Rates are agent steps per
second of the whole run. Notation: T = unroll length, B = batch size, E = environments of an actor.

``predict`` gives each of n learners a batch of B; what n learners make of the unrolls that one
learner steps with is ``predict`` of the costs that ``split`` gives.
"""

import bisect
import dataclasses
import statistics
from collections.abc import Collection, Iterator

# Near a knee two parts of the same rate wait for each other by turns, and the run is slower than
# either: limits add up as a p-norm of their inverses. The published table of the TensorFlow
# original bends like p = 6 (sandbox/speed.md); two equal limits give 89% of one.
SHARPNESS = 6.0
# Another learner that adds less than this share of what the first one makes does not pay.
WORTH = 0.1
_MOST_ACTORS = 1 << 20

ACTORS, LEARNER, ALLREDUCE = "actors", "learner", "allreduce"
ENDPOINT, LINK, SHARED = "endpoint", "endpoint's link", "shared"


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the parts of a run cost, for one level, agent and shape of batches."""

    level_name: str
    agent_name: str
    batch_size: int  # B
    unroll_length: int  # T
    num_envs: int  # E
    sampler_steps_per_sec: float  # of one process that only steps environments
    actor_steps_per_sec: float  # of one actor process, as many beside it as a host has
    actors_per_host: int  # they share a relay: weights reach a host once
    update_secs: float  # of a learner alone for a batch: no averaging, data ready
    update_fixed_secs: float  # of these, what a smaller batch would not save
    update_jitter: float  # standard deviation of that, as a share of it
    # Of backward, after a gradient is ready (a mean over the gradients' bytes): averaging's wait
    # for the link costs no time in it, and of adding up as large a share as ``adding_beside``: 1 on
    # a GPU, 0 where the same cores do both.
    overlap_secs: float
    adding_beside: float
    averagings_per_update: float  # 1 unless batches share a step, or are used again
    gradient_bytes: int
    weights_bytes: int  # of a pull
    bytes_per_step: float  # of an agent step in an encoded unroll
    endpoint_steps_per_sec: float  # that one endpoint decodes into batches
    allreduce_fixed_secs: float  # of the smallest allreduce over two ranks of one host
    allreduce_bytes_per_sec: float  # of a ring over ranks of one host: adding up and copying

    @property
    def steps_per_update(self) -> int:
        """Agent steps in a batch of one learner."""
        return self.batch_size * self.unroll_length

    @property
    def batches_per_step(self) -> int:
        """Batches whose gradients are added up before one learner steps."""
        # A batch is used again or shares a step, never both: the flags refuse that.
        return max(1, round(1 / self.averagings_per_update))

    @property
    def step_batch(self) -> int:
        """Unrolls of one learner's optimizer step: --virtual_batch_size, or B."""
        return self.batch_size * self.batches_per_step


@dataclasses.dataclass(frozen=True)
class Network:
    """What lies between the machines."""

    link_bytes_per_sec: float  # of each host, each way
    hop_secs: float = 50e-6  # from one host to the next
    # Agent steps per second that something which all learners share lets through (one switch
    # port, one disk, one process in the middle); infinite where nothing is shared.
    shared_steps_per_sec: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A run of ``learners`` with ``actors`` each."""

    costs: Costs  # of each learner
    learners: int
    actors: int
    steps_per_sec: float  # agent steps of the whole run
    bound: str  # the part with the lowest limit
    limits: dict[str, float]  # by part, agent steps per second of the whole run
    allreduce_secs: float  # by which averaging makes an update longer
    step_secs: float  # of an update, averaging and waiting for the slowest learner included

    @property
    def allreduce_share(self) -> float:
        return self.allreduce_secs / self.step_secs


def ring_secs(learners: int, num_bytes: float, bytes_per_sec: float, hop_secs: float) -> float:
    """Seconds of a ring allreduce: 2 (n - 1) turns, in each a n-th of the bytes to the next."""
    turns = 2 * (learners - 1)
    return turns * (num_bytes / learners / bytes_per_sec + hop_secs)


def allreduce_secs(costs: Costs, network: Network, learners: int) -> float:
    """Seconds by which averaging makes an update longer: what overlaps with backward is free."""
    if learners == 1:
        return 0.0
    # A chunk is sent and then added up: both take their time, one after the other.
    size = costs.gradient_bytes
    sending = ring_secs(learners, size, network.link_bytes_per_sec, network.hop_secs)
    adding = ring_secs(learners, size, costs.allreduce_bytes_per_sec, 0.0)
    beside = sending + costs.adding_beside * adding
    within = (1 - costs.adding_beside) * adding
    once = costs.allreduce_fixed_secs + max(0.0, beside - costs.overlap_secs) + within
    return costs.averagings_per_update * once


def slowest(learners: int) -> float:
    """Standard deviations by which the slowest of n learners is expected above their mean."""
    # Blom's approximation of the largest of n normal values.
    return statistics.NormalDist().inv_cdf((learners - 0.375) / (learners + 0.25))


def predict(costs: Costs, network: Network, learners: int, actors: int) -> Prediction:
    """What a run reaches.

    Args:
      costs: of one learner, one actor.
      network: between the machines.
      learners: n, each on a host of its own.
      actors: m of each learner, on hosts of their own.
    """
    averaging = allreduce_secs(costs, network, learners)
    alone = costs.update_secs * (1 + costs.update_jitter * slowest(learners))
    step_secs = alone + averaging
    limits = {
        ACTORS: learners * actors * costs.actor_steps_per_sec,
        LEARNER: learners * costs.steps_per_update / step_secs,
        ENDPOINT: learners * costs.endpoint_steps_per_sec,
        LINK: learners * network.link_bytes_per_sec / _link_bytes(costs, learners, actors),
        SHARED: network.shared_steps_per_sec,
    }
    bound = min(limits, key=lambda name: limits[name])
    if bound == LEARNER and averaging > costs.update_secs:
        bound = ALLREDUCE
    return Prediction(
        costs, learners, actors, together(limits.values()), bound, limits, averaging, step_secs
    )


def split(costs: Costs, learners: int) -> Costs | None:
    """Costs of one of n learners that step together with the unrolls that one steps with alone.

    Returns:
      None where n does not divide them: no --batch_size makes the total what it was.
    """
    share, left = divmod(costs.step_batch, learners)
    if left:
        return None
    if learners == 1:
        return costs
    # Fewer batches of B a step before smaller ones: each batch has the fixed part.
    passes = next(k for k in range(-(-share // costs.batch_size), share + 1) if not share % k)
    batch = share // passes
    variable = costs.update_secs - costs.update_fixed_secs
    update = costs.update_fixed_secs + variable * batch / costs.batch_size
    return dataclasses.replace(
        costs,
        batch_size=batch,
        update_secs=update,
        # Jitter stays the share that it is: what disturbs an update (other processes, clocks) does
        # so for as long as it takes. Were it a sum of independent delays, a smaller batch's share
        # would be larger, by the root at most.
        # A stretch of backward, which like the whole has a part for each layer and one for each
        # unroll: it shrinks as the update does.
        overlap_secs=costs.overlap_secs * update / costs.update_secs,
        averagings_per_update=costs.averagings_per_update * costs.batches_per_step / passes,
    )


def together(limits: Collection[float]) -> float:
    """The rate of a chain of parts with these limits; never above the lowest."""
    lowest = min(limits)
    if not lowest:
        return 0.0
    return lowest * sum((lowest / one) ** SHARPNESS for one in limits) ** (-1 / SHARPNESS)


def actors_fed(costs: Costs, network: Network, learners: int = 1) -> int:
    """How many actors a learner can feed on: the first number that can make all that it takes."""

    def enough(actors: int) -> bool:
        limits = predict(costs, network, learners, actors).limits
        return limits[ACTORS] >= min(limits[name] for name in limits if name != ACTORS)

    return bisect.bisect_left(range(1, _MOST_ACTORS), True, key=enough) + 1


def learners_that_pay(
    costs: Costs, network: Network, actors: int, most: int = 64, *, splitting: bool = False
) -> int:
    """The number of learners beyond which none more adds ``WORTH`` of the first's rate.

    The second one may add little and later ones more: averaging begins with it.

    Args:
      costs, network, actors: as for ``predict``.
      most: learners at most.
      splitting: they share the unrolls that one steps with, instead of having as many each; only
        numbers that divide these count, and a step between two of them adds for each learner of it.

    Returns:
      1 to ``most``; the largest number that counts where all of them pay.
    """
    one, *others = rates(costs, network, actors, most, splitting=splitting)
    last, before = 1, one
    for after in others:
        gain = (after.steps_per_sec - before.steps_per_sec) / (after.learners - before.learners)
        if gain >= WORTH * one.steps_per_sec:
            last = after.learners
        before = after
    return last


def rates(
    costs: Costs, network: Network, actors: int, most: int, *, splitting: bool
) -> Iterator[Prediction]:
    """Predictions for 1 to ``most`` learners, those that can be; see ``learners_that_pay``."""
    for learners in range(1, most + 1):
        own = split(costs, learners) if splitting else costs
        if own is not None:
            yield predict(own, network, learners, actors)


def _link_bytes(costs: Costs, learners: int, actors: int) -> float:
    """Bytes that a learner's link carries for an agent step, in the busier direction."""
    # An actor asks for weights once an unroll (of E environments), and a relay asks once a version
    # for all the actors of its host, whichever is less often.
    hosts = -(-actors // costs.actors_per_host)
    pulls = min(1 / (costs.num_envs * costs.unroll_length), hosts / costs.steps_per_update)
    averaged = costs.averagings_per_update * ring_secs(learners, costs.gradient_bytes, 1.0, 0.0)
    per_step = max(costs.bytes_per_step, pulls * costs.weights_bytes)
    return per_step + averaged / costs.steps_per_update
