"""How many machines? Measures this one and says what runs of more of them would reach.

    python -m frontend.plan --level_name=PongNoFrameskip-v4 --agent_name=ShallowConvNetAgent \\
        --batch_size=32 --unroll_length=20 --bandwidth_mbit=1000

takes the flags of the training that is planned, and measures this machine's sampler, actor,
learner and link with them (about a minute; the machine should be idle). Each learner is meant to
have a host of its own like this one, and so have the actors. Learners are planned both ways: each
with --batch_size, so that the total grows with them, and sharing what one learner steps with. It
plans throughput: what larger batches do to learning is not in it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from frontend.plan import costs as costs_lib
from frontend.plan import scaling
from frontend.plan.costs import Measured
from frontend.plan.scaling import Costs, Network, Prediction
from frontend.tables import table
from impala_torch.flags import command_line
from impala_torch.flags.config import PER_PROCESS, Config
from impala_torch.flags.errors import UserError

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_QUICK_SECS = 1.0
_ASSUMED_MBIT = 1000.0
_MOST_LEARNERS = 4096


class Options(argparse.Namespace):
    """The planner's own flags."""

    learners: int
    actors_per_learner: int
    bandwidth_mbit: float | None
    costs: str
    save_costs: str
    quick: bool
    quiet: bool


def main(argv: Sequence[str]) -> int:
    """Plans. Returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        options, config, given = parse(argv)
        if options.costs:
            if given:
                raise UserError(
                    f"--costs={options.costs} was measured with flags of its own: leave out "
                    f"--{min(given)}, or leave out --costs and measure"
                )
            measured = costs_lib.load(options.costs)
        else:
            measured = costs_lib.measure(config, _teller(options.quiet))
        if options.save_costs:
            measured.save(options.save_costs)
        print("\n".join(report(measured, options)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Of the planner's own flags."""
    made = argparse.ArgumentParser(
        prog="python -m frontend.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All flags of training are taken too: experiment.py --helpfull lists them.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--learners", type=int, default=64, help="rows for 1 to so many learners")
    add("--actors_per_learner", type=int, default=0, help="0 = as many as a learner can feed on")
    add("--bandwidth_mbit", type=float, help="of each host's link; else this machine's interface's")
    add("--costs", default="", help="plan with what --save_costs wrote, here or elsewhere")
    add("--save_costs", default="", help="file to write what was measured to")
    add("--quick", action="store_true", help="1 s for each part instead of --sample_secs")
    add("--quiet", action="store_true", help="no words on what is being measured")
    return made


def parse(argv: Sequence[str]) -> tuple[Options, Config, frozenset[str]]:
    """(own flags, those of training, names of the latter that were given).

    Raises:
      UserError: a flag is unknown or its value impossible.
    """
    options, rest = parser().parse_known_args(argv, namespace=Options())
    if not 0 < options.learners <= _MOST_LEARNERS:
        raise UserError(f"--learners must be 1 to {_MOST_LEARNERS}, not {options.learners}")
    if options.actors_per_learner < 0:
        raise UserError(
            f"--actors_per_learner must not be negative, and is {options.actors_per_learner}"
        )
    mbit = options.bandwidth_mbit
    if mbit is not None and not 0 < mbit < float("inf"):
        raise UserError(f"--bandwidth_mbit must be more than 0, not {mbit:g}")
    values = flags.FlagValues()
    command_line.define_flags(values, skip=PER_PROCESS)
    command_line.parse_flags(["plan", *rest], values)
    config = command_line.from_flags(values)
    if options.quick:
        config = config.replace(sample_secs=_QUICK_SECS)
    return options, config, command_line.given(values)


def report(measured: Measured, options: Options) -> list[str]:
    """The plan: what was measured, a row for each number of learners, and advice."""
    costs = measured.costs
    mbit = options.bandwidth_mbit
    notes = list(measured.notes)
    if mbit is None:
        mbit = (measured.link_bytes_per_sec or 0) * 8e-6
        if not mbit:
            mbit = _ASSUMED_MBIT
            notes.append(
                f"the network interface does not tell its speed: {mbit:,.0f} Mbit/s is taken; "
                "--bandwidth_mbit says what it is"
            )
    network = Network(link_bytes_per_sec=mbit * 1e6 / 8)
    actors = options.actors_per_learner or scaling.actors_fed(costs, network)
    counts = [count for count in _ROWS if count < options.learners] + [options.learners]
    lines = [f"measured on {measured.machine}, {measured.date}:", *_parts(costs), ""]
    lines += [
        f"predicted, with links of {mbit:,.0f} Mbit/s and {actors} actor(s) each, in agent steps "
        "per second (and of n times one learner's):"
    ]
    lines += [*table([*_cells(costs, network, counts, actors)]), ""]
    lines += batches(costs, options.learners)
    lines += [feeds(costs, network, options.actors_per_learner)]
    lines += [pays(costs, network, actors, options.learners)]
    lines += [pays(costs, network, actors, options.learners, splitting=True)]
    return lines + [f"note: {note}" for note in notes]


def batches(costs: Costs, most: int) -> list[str]:
    """Which of the two predictions the user gets, and how to get the other: a sentence each."""
    total = costs.step_batch
    flag = (
        f"--virtual_batch_size={total}" if costs.batches_per_step > 1 else f"--batch_size={total}"
    )
    own = (
        f"As the flags stand, learners that are added have {flag} each, the columns on the left: n "
        f"of them step with n x {total} unrolls together, and n times as seldom for each frame."
    )
    shares = ((n, scaling.split(costs, n)) for n in range(min(most, total), 1, -1))
    count, there = next(((n, one) for n, one in shares if one is not None), (1, costs))
    if count == 1:
        return [own, f"No other number of learners up to {most} divides a total of {total}."]
    sizes = f"--batch_size={there.batch_size}"
    if costs.batches_per_step > 1:
        sizes += f" --virtual_batch_size={there.step_batch}"
    name = flag.split("=")[0]
    return [
        own,
        f"To keep {total} in all, the columns on the right, and as many updates for each frame, "
        f"give {name} = {total} / n: {sizes} with {count} learners; n must divide {total}.",
    ]


def feeds(costs: Costs, network: Network, wanted: int = 0) -> str:
    """How many actors a learner can feed on, in a sentence.

    Args:
      costs, network: as for ``scaling.predict``.
      wanted: actors that it is to have; 0 = as many as it can feed on.
    """
    fed = scaling.actors_fed(costs, network)
    limits = scaling.predict(costs, network, 1, fed).limits
    name = min((part for part in limits if part != scaling.ACTORS), key=lambda part: limits[part])
    limit = {
        scaling.LEARNER: "its updates",
        scaling.ENDPOINT: "its endpoint's decoding",
        scaling.LINK: "its link",
    }[name]
    hosts = -(-fed // costs.actors_per_host)
    sentence = (
        f"A learner can feed on {fed} actor(s) of {costs.num_envs} environments: {hosts} host(s) "
        f"like this one. More would wait, for {limit}"
    )
    if wanted and wanted < fed:
        return f"{sentence}; with {wanted} it is the learner that waits."
    return f"{sentence}."


def pays(costs: Costs, network: Network, actors: int, most: int, *, splitting: bool = False) -> str:
    """Where more learners stop paying, in a sentence; for ``splitting`` see ``scaling``."""
    predicted = [*scaling.rates(costs, network, actors, most, splitting=splitting)]
    last = scaling.learners_that_pay(costs, network, actors, most, splitting=splitting)
    place = next(place for place, one in enumerate(predicted) if one.learners == last)
    rate = predicted[place].steps_per_sec
    gain = f"{rate:,.0f} steps/s, {rate / predicted[0].steps_per_sec:.1f} times one"
    who = f"At {costs.step_batch} in all, learners pay" if splitting else "Learners pay"
    if place == len(predicted) - 1:
        if last == most:
            return f"{who} up to {last} at least: they reach {gain}."
        return f"{who} up to {last}, the most that divides {costs.step_batch}: they reach {gain}."
    after = predicted[place + 1]
    more = "one more adds" if after.learners == last + 1 else f"each of {after.learners} adds"
    return (
        f"{who} up to {last} ({gain}): {more} less than a tenth of what the first one makes, "
        f"because {_why(after, splitting=splitting)}."
    )


def _why(made: Prediction, *, splitting: bool) -> str:
    """What keeps a run from being faster."""
    update = f"averaging is {made.allreduce_share:.0%} of an update"
    # Batches that stay as large have a fixed part too, but more learners leave its share as it is.
    if splitting and made.allreduce_secs < made.costs.update_fixed_secs:
        fixed = made.costs.update_fixed_secs / made.step_secs
        update = f"{fixed:.0%} of an update is the same for any batch"
    return {
        scaling.ACTORS: "it brings too few actors",
        scaling.LEARNER: update,
        scaling.ALLREDUCE: update,
        scaling.LINK: "the learners' links are full",
        scaling.SHARED: "the limit is what all learners share",
    }.get(made.bound, f"the limit is the {made.bound}")


def _parts(costs: Costs) -> list[str]:
    update = (
        f"{1000 * costs.update_secs:.1f} ms for {costs.steps_per_update:,} steps, "
        f"{1000 * costs.update_fixed_secs:.1f} of them for any number"
    )
    alone = costs.steps_per_update / costs.update_secs
    fixed, adding = 1000 * costs.allreduce_fixed_secs, costs.allreduce_bytes_per_sec / 1e9
    gradient = f"{costs.gradient_bytes / 1e6:.1f} MB at {adding:.1f} GB/s"
    rows = [
        (costs.level_name, costs.agent_name, "steps/s"),
        ("sampler", "a process, random actions", f"{costs.sampler_steps_per_sec:,.0f}"),
        (
            "actor",
            f"one of {costs.actors_per_host} that run together",
            f"{costs.actor_steps_per_sec:,.0f}",
        ),
        ("learner", f"an update takes {update}", f"{alone:,.0f}"),
        (
            "endpoint",
            f"{costs.bytes_per_step:,.0f} bytes a step",
            f"{costs.endpoint_steps_per_sec:,.0f}",
        ),
        ("averaging", f"{fixed:.1f} ms and {gradient}, on one host", ""),
    ]
    return table(rows)


def _cells(
    costs: Costs, network: Network, counts: Sequence[int], actors: int
) -> Iterator[tuple[str, ...]]:
    total = costs.step_batch
    own = (f"{total} each: in all", "steps/s", "averaging", "slowest part")
    shared = (f"{total} in all: each", "steps/s", "averaging", "slowest part")
    yield ("learners", *own, *shared)
    one = scaling.predict(costs, network, 1, actors).steps_per_sec

    def told(made: Prediction) -> tuple[str, ...]:
        share = made.steps_per_sec / one / made.learners
        rate = f"{made.steps_per_sec:,.0f} ({share:.0%})"
        return rate, f"{made.allreduce_share:.0%}", made.bound

    for count in counts:
        row = (
            str(count),
            str(count * total),
            *told(scaling.predict(costs, network, count, actors)),
        )
        part = scaling.split(costs, count)
        if part is None:
            yield (*row, "-", "-", "-", "-")
        else:
            made = scaling.predict(part, network, count, actors)
            yield (*row, str(part.step_batch), *told(made))


def _teller(quiet: bool):
    """Prints what is being measured, on a terminal."""

    def tell(line: str) -> None:
        if not quiet and sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
