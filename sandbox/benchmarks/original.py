"""The TensorFlow original's published throughput, against the model of ``frontend.plan.scaling``.

    python sandbox/benchmarks/original.py

What the single-learner column shows (an actor's rate, a learner's rate, how sharp the knee is) is
estimated from that column, the network from the rows of 2 and 3 learners; the ceiling that all
learners share is the table's largest rate. The rows of 4 to 8 learners are predicted.
"""

import itertools
import pathlib
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from frontend.plan import scaling  # noqa: E402
from frontend.plan.scaling import Costs, Network  # noqa: E402

# Thousand agent steps per second.
BY_ACTORS: Mapping[int, float] = {15: 2.3, 30: 4.3, 45: 6.0, 60: 6.2, 90: 6.2, 110: 6.3}
BY_LEARNERS: Mapping[int, float] = dict(
    enumerate((5.8, 10.8, 15.6, 18.8, 21.0, 21.6, 21.7, 21.6), start=1)
)
ACTORS = 45  # of each learner, in BY_LEARNERS
STACK_BYTES = 84 * 84 * 4  # the original sends an observation as it is
# Its README's example: B = 32, T = 20, and its convolutional network's parameters.
BATCH, LENGTH, WEIGHTS_BYTES = 32, 20, 6_751_072


def costs(actor_rate: float, learner_rate: float) -> Costs:
    """The original's parts, from agent steps per second of one actor and of one learner."""
    return Costs(
        level_name="Atari",
        agent_name="the TensorFlow original's",
        batch_size=BATCH,
        unroll_length=LENGTH,
        num_envs=1,
        sampler_steps_per_sec=actor_rate,
        actor_steps_per_sec=actor_rate,
        actors_per_host=1 << 20,  # what weights cost it is not known: nothing
        update_secs=BATCH * LENGTH / learner_rate,
        update_fixed_secs=0.0,  # its batch is always the same
        update_jitter=0.0,
        overlap_secs=0.0,
        adding_beside=0.0,
        averagings_per_update=1.0,
        gradient_bytes=WEIGHTS_BYTES,
        weights_bytes=WEIGHTS_BYTES,
        bytes_per_step=0.0,
        endpoint_steps_per_sec=float("inf"),
        allreduce_fixed_secs=0.0,
        allreduce_bytes_per_sec=float("inf"),
    )


def rate(parts: Costs, network: Network, learners: int, actors: int) -> float:
    """Predicted, in thousand agent steps per second."""
    return scaling.predict(parts, network, learners, actors).steps_per_sec / 1e3


def fit() -> tuple[Costs, Network]:
    """Estimates from the single-learner column and the rows of 2 and 3 learners."""
    ceiling = 1e3 * max(BY_LEARNERS.values())
    fast = Network(1e12, 0.0)

    def column(parts: Costs) -> float:
        return max(
            abs(rate(parts, fast, 1, actors) / told - 1) for actors, told in BY_ACTORS.items()
        )

    choices = itertools.product(range(140, 166), range(6000, 6801, 25))
    parts = min((costs(float(actor), float(learner)) for actor, learner in choices), key=column)

    def rows(network: Network) -> float:
        return max(abs(rate(parts, network, n, ACTORS) / BY_LEARNERS[n] - 1) for n in (2, 3))

    links = (Network(1e7 * tens, 0.0, ceiling) for tens in range(10, 200))
    return parts, min(links, key=rows)


def table() -> list[tuple[str, ...]]:
    """Published and predicted rates, a row each below a heading."""
    parts, network = fit()
    free = Network(network.link_bytes_per_sec, 0.0)
    heading = ("learners", "actors each", "published, K steps/s", "model", "error")
    lines: list[tuple[str, ...]] = [(*heading, "without a shared ceiling", "the row was")]
    for actors, told in BY_ACTORS.items():
        lines.append(_row(1, actors, told, rate(parts, free, 1, actors), "", "fitted"))
    for n, told in BY_LEARNERS.items():
        used = {1: "predicted", 2: "fitted", 3: "fitted", 7: "the ceiling"}.get(n, "predicted")
        unshared = f"{rate(parts, free, n, ACTORS):.1f}"
        lines.append(_row(n, ACTORS, told, rate(parts, network, n, ACTORS), unshared, used))
    return lines


def _row(n: int, actors: int, told: float, model: float, unshared: str, used: str):
    error = f"{model / told - 1:+.1%}"
    return (str(n), str(actors), f"{told:.1f}", f"{model:.1f}", error, unshared, used)


def main() -> None:
    parts, network = fit()
    print(
        f"an actor {parts.actor_steps_per_sec:.0f} steps/s, a learner "
        f"{parts.steps_per_update / parts.update_secs:,.0f}, an update "
        f"{parts.update_secs * 1e3:.0f} ms, averaging "
        f"{network.link_bytes_per_sec * 8e-9:.1f} Gbit/s, the ceiling "
        f"{network.shared_steps_per_sec:,.0f} steps/s = "
        f"{network.shared_steps_per_sec * STACK_BYTES * 8e-9:.1f} Gbit/s of stacks"
    )
    for row in table():
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
