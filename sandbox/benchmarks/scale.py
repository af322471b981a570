"""What averaging over several learners costs, how to do it best, and what n learners would reach.

    python sandbox/benchmarks/scale.py                 all of it, about 15 minutes; writes speed.md
    python sandbox/benchmarks/scale.py --quick         a third of that, less steady; writes nothing
    python sandbox/benchmarks/scale.py --simulate      only the model's tables
    python sandbox/benchmarks/scale.py --simulate --costs costs.json

Real ranks under mpirun and Horovod with ready data. All variants are started once and take turns;
whoever has no turn is stopped (SIGSTOP). A ratio is the median over rounds. As root, links of a
given speed are tried too: a network namespace of its own, whose loopback is held to that speed.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from frontend import commands  # noqa: E402
from frontend.commands import Mpi  # noqa: E402
from frontend.plan import costs as costs_lib  # noqa: E402
from frontend.plan import scaling  # noqa: E402
from frontend.plan.scaling import Costs, Network  # noqa: E402
from impala_torch.flags.config import Config  # noqa: E402
from sandbox.benchmarks import original  # noqa: E402

# Agent -> B: updates of some 0.1 to 0.3 s on a core.
AGENTS = {"ShallowConvNetAgent": 32, "ResNetAgent": 4}
LENGTH = 20
SHARED_MEMORY = Network(link_bytes_per_sec=1e15, hop_secs=0.0)
UNHELD = float("inf")  # Mbit/s of a loopback as it is
LINKS = {"1 Gbit/s": 1000.0, "200 Mbit/s": 200.0}
SIMULATED_GBIT = (1, 10, 25, 100)
SIMULATED_LEARNERS = (1, 2, 4, 8, 16, 32, 64)
BEGIN, END = "<!-- scale.py: begin -->", "<!-- scale.py: end -->"
RANKS = (2, 4) if (os.cpu_count() or 1) >= 8 else (2,)

Row = tuple[str, ...]


class Options(argparse.Namespace):
    quick: bool
    simulate: bool
    costs: str

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 9

    @property
    def secs(self) -> float:
        """Of one turn."""
        return 0.7 if self.quick else 1.5


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of averaging, tried by a job of its own."""

    name: str
    ranks: int = 2
    way: str = "hooks"  # see scale_rank.py
    env: tuple[tuple[str, str], ...] = ()
    mbit: float = 0.0  # of each rank's link; 0 = shared memory


# --- jobs that take turns -----------------------------------------------------------------------


class Job:
    """Ranks that make so many updates when they are told to, and are stopped otherwise."""

    def __init__(self, agent: str, variant: Variant) -> None:
        self.variant = variant
        self._steps = AGENTS[agent] * LENGTH
        self.rates: list[float] = []  # agent steps/s of a rank, by round
        self.shares: list[float] = []  # of that time in allreduce, by round
        self.update_secs: list[float] = []
        script = str(pathlib.Path(__file__).with_name("scale_rank.py"))
        flags = [f"--agent_name={agent}", f"--batch_size={AGENTS[agent]}", "--num_envs=4"]
        flags += ["--level_name=PongNoFrameskip-v4", f"--unroll_length={LENGTH}"]
        argv = mpirun([sys.executable, script, variant.way, *flags], variant.ranks, variant.mbit)
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict(variant.env)},
        )
        self._pids: list[int] = []
        self.overlap_secs = 0.0  # told by ranks that do not average
        self._updates = 3

    def start(self) -> None:
        """Waits until the ranks are ready and warm, and stops them."""
        told = self._read()
        self._pids, self.overlap_secs = told["pids"], told.get("overlap_secs", 0.0)
        self._updates = self._for(self._turn(self._updates)["secs"], 1.0)
        self._signal(signal.SIGSTOP)

    def turn(self, secs: float) -> None:
        """Makes updates for about so many seconds."""
        self._signal(signal.SIGCONT)
        told = self._turn(self._updates)
        self._signal(signal.SIGSTOP)
        self.rates.append(self._updates * self._steps / told["secs"])
        self.shares.append(told["allreduce_secs"] / told["secs"])
        self.update_secs += told["update_secs"]
        self._updates = self._for(told["secs"], secs)

    def close(self) -> None:
        """Ends the ranks, whatever they are at."""
        self._signal(signal.SIGCONT)
        try:
            self._write(0)
            self._process.wait(30)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.terminate()  # mpirun, which ends its ranks
            self._process.wait()

    def _for(self, told_secs: float, secs: float) -> int:
        """Updates that take ``secs``, where the last turn's took ``told_secs``."""
        return max(2, round(self._updates * secs / told_secs))

    def _turn(self, updates: int) -> dict:
        self._write(updates)
        return self._read()

    def _write(self, updates: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{updates}\n")
        self._process.stdin.flush()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"'{self.variant.name}' ended with {self._process.wait()}")

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def mpirun(program: Sequence[str], ranks: int, mbit: float = 0.0) -> list[str]:
    """The command of so many ranks here; with ``mbit``, over TCP on links of that speed."""
    mpi = Mpi(shutil.which("mpirun") or "mpirun", as_root=os.geteuid() == 0)
    if not mbit:
        return commands.mpi_job(["localhost"] * ranks, [program] * ranks, mpi, over_ssh=False)
    tcp = ("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo")
    mpi = dataclasses.replace(mpi, extra=tcp)
    argv = commands.mpi_job(["localhost"] * ranks, [program] * ranks, mpi, over_ssh=False)
    steps = ["ip link set lo up mtu 9000"]
    if mbit < UNHELD:
        # All ranks share the one loopback: as fast as all their links together.
        speed = f"rate {mbit * ranks}mbit burst 512kb latency 100ms"
        steps.append(f"tc qdisc add dev lo root tbf {speed}")
    steps.append('exec "$@"')
    return ["unshare", "--net", "bash", "-c", " && ".join(steps), "held", *argv]


def can_hold_links() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, ("unshare", "ip", "tc")))


# --- measuring ----------------------------------------------------------------------------------


def variants() -> list[Variant]:
    found = [Variant("1 rank", ranks=1), Variant("2 ranks that do not average", way="alone")]
    found += [
        Variant("2 ranks, as shipped"),
        Variant("one flat tensor, after backward", way="flat"),
        Variant("fp16 compression", way="half"),
        Variant("no fusion", env=(("HOROVOD_FUSION_THRESHOLD", "0"),)),
        Variant("cycle of 0.1 ms", env=(("HOROVOD_CYCLE_TIME", "0.1"),)),
        Variant("cycle of 5 ms", env=(("HOROVOD_CYCLE_TIME", "5"),)),
    ]
    for ranks in RANKS[1:]:
        found += [Variant(f"{ranks} ranks that do not average", ranks, "alone")]
        found += [Variant(f"{ranks} ranks, as shipped", ranks)]
    if can_hold_links():
        for name, mbit in LINKS.items():
            found += [
                Variant(f"{name}: as shipped", mbit=mbit),
                Variant(f"{name}: one flat tensor", way="flat", mbit=mbit),
                Variant(f"{name}: fp16", way="half", mbit=mbit),
            ]
    return found


def measure(agent: str, options: Options) -> list[Job]:
    """Every variant's rates, in rounds in which all of them take turns."""
    jobs: list[Job] = []
    try:
        for variant in variants():
            print(f"starting {agent}, {variant.name}", file=sys.stderr, flush=True)
            jobs.append(Job(agent, variant))
            jobs[-1].start()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for job in jobs:
                job.turn(options.secs)
    finally:
        for job in jobs:
            job.close()
    return jobs


def averaging(agent: str, jobs: Sequence[Job]) -> Iterator[Row]:
    """Two learners with ready data, a thread each: ways of averaging."""
    yield (agent, "steps/s of a rank", "of that time in allreduce", "against as shipped")
    for job in jobs:
        base = job_named(jobs, shipped(job.variant))
        ratios = [one / two for one, two in zip(job.rates, base.rates, strict=True)]
        against = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rate, share = statistics.median(job.rates), statistics.median(job.shares)
        yield (job.variant.name, f"{rate:,.0f}", f"{share:.0%}", "" if job is base else against)


def shipped(variant: Variant) -> str:
    """Name of the variant that another one is compared with."""
    link, colon, _ = variant.name.partition(":")
    if colon:
        return f"{link}: as shipped"
    return f"{max(variant.ranks, 2)} ranks, as shipped"


def job_named(jobs: Sequence[Job], name: str) -> Job:
    return next(job for job in jobs if job.variant.name == name)


def checks(agent: str, jobs: Sequence[Job]) -> Iterator[Row]:
    """The model against these ranks: steps/s of a rank, from the ranks that do not average."""
    yield (agent, "model", "measured", "error", "error without the jitter term")
    for job in jobs:
        if "as shipped" not in job.variant.name:
            continue
        alone = job_named(jobs, f"{job.variant.ranks} ranks that do not average")
        network = SHARED_MEMORY
        if job.variant.mbit:
            network = Network(job.variant.mbit * 1e6 / 8, hop_secs=0.0)
        parts = ranks_costs(agent, alone, job.variant)
        rates = []
        for costs in (parts, dataclasses.replace(parts, update_jitter=0.0)):
            made = scaling.predict(costs, network, job.variant.ranks, 1).limits[scaling.LEARNER]
            rates.append(made / job.variant.ranks)
        told = statistics.median(job.rates)
        errors = [f"{rate / told - 1:+.0%}" for rate in rates]
        yield (job.variant.name, f"{rates[0]:,.0f}", f"{told:,.0f}", *errors)


def ranks_costs(agent: str, alone: Job, variant: Variant) -> Costs:
    """The model's costs of a rank here, by what it does alone and by a bare allreduce."""
    quarters = statistics.quantiles(alone.update_secs, n=4)
    # On a held link the wire is the model's: the rest is timed on one that nothing holds.
    program = [sys.executable, "-m", "impala_torch.measure.allreduce"]
    argv = mpirun(program, variant.ranks, UNHELD if variant.mbit else 0.0)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    fixed, adding = costs_lib.ring_part(json.loads(line))
    steps = AGENTS[agent] * LENGTH
    return dataclasses.replace(
        original.costs(1e9, 1e9),
        batch_size=AGENTS[agent],
        unroll_length=LENGTH,
        update_secs=steps / statistics.median(alone.rates),
        update_jitter=(quarters[2] - quarters[0]) / 1.349 / quarters[1],
        overlap_secs=alone.overlap_secs,
        gradient_bytes=gradient_bytes(agent),
        allreduce_fixed_secs=fixed,
        allreduce_bytes_per_sec=adding,
    )


def gradient_bytes(agent: str) -> int:
    """Bytes of an agent's float32 gradients, for Pong."""
    from impala_torch import environments
    from impala_torch.agents import make_agent

    spec = environments.environment_spec("PongNoFrameskip-v4")
    return 4 * sum(parameter.numel() for parameter in make_agent(agent, spec).parameters())


# --- simulating ---------------------------------------------------------------------------------


def simulated(costs: Costs) -> Iterator[Row]:
    """n learners on hosts of their own, as many actors as they feed on: agent steps/s."""
    yield (f"{costs.agent_name}, learners", *(f"{gbit} Gbit/s" for gbit in SIMULATED_GBIT))
    networks = [Network(gbit * 1e9 / 8) for gbit in SIMULATED_GBIT]
    fed = [scaling.actors_fed(costs, network) for network in networks]
    ones = [
        scaling.predict(costs, network, 1, actors).steps_per_sec
        for network, actors in zip(networks, fed, strict=True)
    ]
    for n in SIMULATED_LEARNERS:
        cells = []
        for network, actors, one in zip(networks, fed, ones, strict=True):
            made = scaling.predict(costs, network, n, actors)
            cells.append(f"{made.steps_per_sec:,.0f} ({made.steps_per_sec / one / n:.0%})")
        yield (str(n), *cells)
    yield ("actors of each", *map(str, fed))
    pay = [
        scaling.learners_that_pay(costs, network, actors)
        for network, actors in zip(networks, fed, strict=True)
    ]
    yield ("learners that pay", *(str(last) if last < 64 else "64 and more" for last in pay))


def costs_here(agent: str, options: Options) -> Costs:
    """What this machine's parts cost, all its cores a learner's or its actors'."""
    config = Config(
        level_name="PongNoFrameskip-v4",
        agent_name=agent,
        batch_size=32,
        unroll_length=LENGTH,
        sample_secs=1.0 if options.quick else 5.0,
    )
    return costs_lib.measure(config, lambda line: print(line, file=sys.stderr, flush=True)).costs


# --- what they share ----------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return ["", lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]]


def told(options: Options) -> Iterator[str]:
    """The lines of all tables, each as soon as it is known."""
    yield f"{datetime.date.today().isoformat()}, {costs_lib.machine()}."
    if not options.simulate:
        for name in AGENTS:
            jobs = measure(name, options)
            yield from ("", f"{averaging.__doc__} Median of {options.rounds} rounds.")
            yield from markdown(list(averaging(name, jobs)))
            yield from ("", str(checks.__doc__))
            yield from markdown(list(checks(name, jobs)))
    yield from ("", f"Simulated, {simulated.__doc__}")
    if options.costs:
        yield from markdown(list(simulated(costs_lib.load(options.costs).costs)))
    else:
        for name in AGENTS:
            yield from markdown(list(simulated(costs_here(name, options))))
    yield from ("", "The model against the TensorFlow original's published table:")
    yield from markdown(original.table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--simulate", action="store_true", help="only the model's tables")
    parser.add_argument("--costs", default="", help="of --simulate: what plan.py's wrote")
    options = parser.parse_args(namespace=Options())
    # However it is ended, its jobs are: whoever has no turn is stopped and would stay for ever.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    lines = []
    for line in told(options):
        print(line, flush=True)
        lines.append(line)
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    if not (options.quick or options.simulate):
        path = ROOT / "sandbox" / "speed.md"
        made = f"{BEGIN}\n" + "\n".join(lines) + f"\n{END}"
        text = re.sub(f"{BEGIN}.*{END}", lambda _: made, path.read_text(), flags=re.DOTALL)
        path.write_text(text)


if __name__ == "__main__":
    main()
