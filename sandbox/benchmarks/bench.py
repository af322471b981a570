"""How close each part comes to what the machine allows: ratios measured side by side.

    make bench                     all of it, about 15 minutes; writes the tables of speed.md
    make bench BENCH_FLAGS=--quick a third of it, less steady
    make bench BENCH_FLAGS=--brief only to see that each part runs: the figures mean nothing
    python sandbox/benchmarks/bench.py --only acting,learning

Each ratio is the median of rounds in which the two sides take turns, so that what else the machine
does falls on both.
"""

import argparse
import csv
import datetime
import inspect
import itertools
import multiprocessing
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "sandbox" / "benchmarks"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import wire  # noqa: E402
from absl import flags  # noqa: E402

from impala_torch import environments  # noqa: E402
from impala_torch.acting.player import Player  # noqa: E402
from impala_torch.acting.unrolls import UnrollCollector  # noqa: E402
from impala_torch.agents import Agent, make_agent, precision  # noqa: E402
from impala_torch.endpoint.codec import UnrollCodec  # noqa: E402
from impala_torch.endpoint.run_spec import run_spec_of  # noqa: E402
from impala_torch.environments.atari import AtariEnvironment  # noqa: E402
from impala_torch.flags import command_line  # noqa: E402
from impala_torch.flags.config import Config  # noqa: E402
from impala_torch.flags.shares import shared_out  # noqa: E402
from impala_torch.learner import Learner  # noqa: E402
from impala_torch.learning.feed import make_batch  # noqa: E402
from impala_torch.learning.group import Group  # noqa: E402
from impala_torch.machine.cores import usable  # noqa: E402
from impala_torch.measure import sample  # noqa: E402
from impala_torch.report.tally import Tally  # noqa: E402
from impala_torch.structures import AgentInput  # noqa: E402

LEVEL = "PongNoFrameskip-v4"
AGENTS = ("ShallowConvNetAgent", "SimpleConvNetAgent")
ALL_AGENTS = (*AGENTS, "ShallowConvLSTMAgent", "ResNetAgent", "ResNetLSTMAgent")
NUM_ENVS, BATCH = 16, 32
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"

Row = tuple[str, ...]


class Options(argparse.Namespace):
    quick: bool
    brief: bool
    only: str
    play: str

    @property
    def rounds(self) -> int:
        return 1 if self.brief else 3 if self.quick else 5

    @property
    def secs(self) -> float:
        """Of one side in one round."""
        return 0.1 if self.brief else 0.7 if self.quick else 1.5

    @property
    def training_secs(self) -> float:
        return 1.0 if self.brief else 10.0 if self.quick else 15.0


# --- 1: the sampler's bound ---------------------------------------------------------------------


def sampler(options: Options) -> Iterator[Row]:
    """Random actions through the actors' environments, against ALE's own loop."""
    yield ("game", "ours, steps/s", "ALE's vector environment alone", "ratio", "bar")
    for game in ("Pong",) if options.quick else ("Pong", "Breakout", "Seaquest"):
        config = _config(level_name=f"{game}NoFrameskip-v4", sample_secs=options.secs)
        sides = ([], [])
        for _ in range(options.rounds):
            sides[0].append(sample.measure(config).steps_per_sec)
            sides[1].append(_bare_sampling(config))
        yield (game, *_sides(sides), "0.95")


def _bare_sampling(config: Config) -> float:
    context = multiprocessing.get_context("spawn")
    count = os.cpu_count() or 1
    together, results = context.Barrier(count), context.SimpleQueue()
    workers = [
        context.Process(target=_bare_loop, args=(config, task, together, results))
        for task in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a sampling process ended with exit code {worker.exitcode}")
    return sum(results.get() for _ in workers)


def _bare_loop(config: Config, task: int, together, results) -> None:
    environment = AtariEnvironment(environments.level_of(config), config.num_envs, task)
    ale = environment._env
    ale.reset(seed=np.arange(config.num_envs, dtype=np.int32))
    rng = np.random.default_rng(task)
    actions = rng.integers(0, environment.spec.num_actions, (997, config.num_envs))
    for row in range(50):
        ale.step(actions[row])
    together.wait()
    begun, steps = time.perf_counter(), 0
    while (secs := time.perf_counter() - begun) < config.sample_secs:
        ale.step(actions[steps % 997])
        steps += 1
    results.put(steps * config.num_envs / secs)


# --- 2: acting ----------------------------------------------------------------------------------


def acting(options: Options) -> Iterator[Row]:
    """An actor's loop on one core, against emulation and a bare forward, one after the other."""
    yield ("agent", "actor, steps/s", "what the floors allow", "ratio", "bar")
    torch.set_num_threads(1)
    for name in AGENTS:
        yield (name, *_acting(_config(agent_name=name), options), "0.85")


def _acting(config: Config, options: Options) -> Row:
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    agent = make_agent(config.agent_name, spec, precision.resolve("auto", "cpu")).for_acting()
    player = Player(agent, environments.make_environment(level, NUM_ENVS, 1), 1)
    collector = UnrollCollector(player, config.unroll_length)
    codec = UnrollCodec(run_spec_of(config, level, spec, agent.state_size))
    environment = environments.make_environment(level, NUM_ENVS, 2)
    environment.reset()
    rng = np.random.default_rng(3)
    forward = _bare_acting(agent, NUM_ENVS)

    def act() -> int:
        codec.encode(collector.collect(0))
        return NUM_ENVS * config.unroll_length

    def emulate() -> int:
        environment.step(rng.integers(0, spec.num_actions, NUM_ENVS))
        return NUM_ENVS

    sides: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        sides[0].append(_rate(act, options.secs))
        emulation, forwards = (_rate(one, options.secs / 2) for one in (emulate, forward))
        sides[1].append(1 / (1 / emulation + 1 / forwards))
    return _sides(sides)


def _bare_acting(agent: Agent, num_envs: int) -> Callable[[], int]:
    """A function that runs an agent once, on pictures."""
    observation = torch.randint(0, 255, (1, num_envs, 84, 84, 4), dtype=torch.uint8)
    inputs = AgentInput(
        observation.movedim(-1, 2),
        torch.zeros(1, num_envs),
        torch.zeros(1, num_envs, dtype=torch.bool),
        torch.zeros(1, num_envs, dtype=torch.int64),
    )
    state = agent.initial_state(num_envs)

    def forward() -> int:
        with torch.inference_mode():
            agent(inputs, state)
        return num_envs

    return forward


# --- 3: learning --------------------------------------------------------------------------------


def learning(options: Options) -> Iterator[Row]:
    """A learner's updates on ready batches, against the bare forward and backward."""
    yield ("agent", "learner, steps/s", "bare forward and backward", "ratio", "bar")
    for name in AGENTS:
        with tempfile.TemporaryDirectory() as folder:
            config = _config(
                agent_name=name, batch_size=BATCH, learner_host="127.0.0.1:18431", logdir=folder
            )
            yield (name, *_learning(config, options), "0.9")


def _learning(config: Config, options: Options) -> Row:
    torch.set_num_threads(os.cpu_count() or 1)
    learner = Learner(config, Group(), pathlib.Path(config.logdir))
    codec, buffers = UnrollCodec(learner.spec), _encoded(learner)
    bare = _bare_learning(learner, buffers)
    steps, queue = BATCH * config.unroll_length, learner.batches
    tally = Tally(learner.spec.environment.num_actions)

    def feed() -> None:
        # As it comes from an actor: decoded and assembled beside the update before.
        queue.reserve(BATCH)
        unroll = codec.decode_fields(buffers, BATCH, learner.state.updates)
        queue.put((b"", b""), unroll, BATCH)

    def update() -> int:
        feed()
        ready = queue.get(60)
        assert ready is not None
        learner.update(ready, tally)
        return steps

    feed()  # one is always ahead
    sides: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        sides[0].append(_rate(update, options.secs))
        sides[1].append(_rate(bare, options.secs))
    _close(learner)
    return _sides(sides)


def _encoded(learner: Learner) -> list[bytes]:
    """A message of as many unrolls as a batch of the learner's has."""
    config, spec = learner.config, learner.spec.environment
    agent = make_agent(config.agent_name, spec).for_acting()
    player = Player(agent, environments.make_environment(LEVEL, config.batch_size, 1), 1)
    return UnrollCodec(learner.spec).encode(
        UnrollCollector(player, config.unroll_length).collect(0)
    )


def _bare_learning(learner: Learner, buffers: list[bytes]) -> Callable[[], int]:
    """A function that computes all that the learner's algorithm needs of a batch, and no more."""
    config, codec = learner.config, UnrollCodec(learner.spec)
    batch = make_batch(learner.spec, config.batch_size, learner.device)
    for env in range(config.batch_size):
        fields = codec.decode_fields(buffers, config.batch_size, 0)
        codec.decode_column(fields, env, batch.arrays, env)

    def learn() -> int:
        for part in learner.algorithm.parts(learner.prepared(batch.tensors), 0):
            loss, _ = learner.algorithm.loss(part, config.entropy_cost)
            learner.optimizer.zero_grad()
            loss.backward()
        learner.algorithm.used(1.0)
        return config.batch_size * config.unroll_length

    return learn


def _close(learner: Learner) -> None:
    learner.endpoint._num_actors = 0  # nobody is waited for
    learner.close()


# --- 4: end to end ------------------------------------------------------------------------------


def end_to_end(options: Options) -> Iterator[Row]:
    """Whole local training, as a share of the sampler's bound in the same run."""
    yield ("game", "agent", "steps/s", "sampler's bound", "share", "bar", "against float32, E = 1")
    agents = AGENTS if options.quick else ALL_AGENTS
    games = ("Pong",) if options.quick else ("Pong", "Breakout")
    secs = options.training_secs
    bars = {"ShallowConvNetAgent": "0.55", "SimpleConvNetAgent": "0.42"}
    for game, name in itertools.product(games, agents):
        level = f"{game}NoFrameskip-v4"
        bound = sample.measure(_config(level_name=level, sample_secs=4.0)).steps_per_sec
        rate = _train(level, name, secs)
        against = ""
        if game == "Pong":
            classical = _train(level, name, secs, "--precision=float32", "--num_envs=1")
            against = f"{rate / classical:.1f}"
        yield (
            game,
            name,
            f"{rate:,.0f}",
            f"{bound:,.0f}",
            f"{rate / bound:.2f}",
            bars.get(name, ""),
            against,
        )


# --- 5: both cores ------------------------------------------------------------------------------


def joint(options: Options) -> Iterator[Row]:
    """Whole training by a preset, against what its parts need: all cores at emulation, acting and
    learning, each bare and on one thread, with nothing between them."""
    yield (
        *("preset", "steps/s", "emulation, core·µs a step", "acting", "learning"),
        *("joint floor, steps/s", "share", "bar"),
    )
    cores = usable()
    for preset in ("atari_impala", "atari_fast"):
        words = (f"--preset={preset}", f"--level_name={LEVEL}")
        config = shared_out(_from_flags(*words), 1, cores)
        rates, floors, costs = [], [], []
        for _ in range(min(options.rounds, 3)):
            costs.append(_costs(config, options))
            floors.append(cores / sum(costs[-1]))
            rates.append(_rate_of_training(options.training_secs, *words))
        yield (
            *(preset, f"{statistics.median(rates):,.0f}"),
            *(f"{1e6 * statistics.median(one):.0f}" for one in zip(*costs, strict=True)),
            *_sides((rates, floors))[1:],
            "0.85",
        )


def _costs(config: Config, options: Options) -> tuple[float, float, float]:
    """Core seconds of an agent step: emulation, acting, learning."""
    torch.set_num_threads(1)
    sampler = sample.measure(config.replace(sample_secs=2 * options.secs)).steps_per_sec
    with tempfile.TemporaryDirectory() as folder:
        config = config.replace(learner_host="127.0.0.1:18432", logdir=folder)
        learner = Learner(config, Group(), pathlib.Path(folder))
        learn = _bare_learning(learner, _encoded(learner))
        kind = precision.resolve("auto", "cpu")
        agent = make_agent(config.agent_name, learner.spec.environment, kind).for_acting()
        act = _rate(_bare_acting(agent, config.num_envs), options.secs)
        learning = _rate(learn, 2 * options.secs)
        _close(learner)
    return usable() / sampler, 1 / act, 1 / learning


def _from_flags(*words: str) -> Config:
    values = flags.FlagValues()
    command_line.define_flags(values)
    command_line.parse_flags(["bench", *words], values)
    return command_line.from_flags(values)


def _train(level: str, agent: str, secs: float, *more: str) -> float:
    sizes = ("--batch_size=32", "--unroll_length=20")
    return _rate_of_training(secs, f"--level_name={level}", f"--agent_name={agent}", *sizes, *more)


def _rate_of_training(secs: float, *words: str) -> float:
    """Agent steps per second of local training, after its start."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, str(ROOT / "experiment.py")]
        argv += [f"--logdir={folder}", "--progress_secs=2", *words]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        path = pathlib.Path(folder) / "metrics.csv"
        try:
            while not _frames(path):
                if process.poll() is not None:
                    raise RuntimeError(f"training ended with exit code {process.returncode}")
                time.sleep(0.5)
            time.sleep(5.0 + secs)
            while len(rows := _frames(path)) < 3 and process.poll() is None:
                time.sleep(0.5)
        finally:
            process.terminate()
            process.wait(60)
    rows = rows[1:]  # the first one has the start in it
    (begun, first), (ended, last) = rows[0], rows[-1]
    return (last - first) / 4 / (ended - begun)


def _frames(path: pathlib.Path) -> list[tuple[float, int]]:
    if not path.exists():
        return []
    with open(path) as file:
        rows = [(float(row["time"]), int(row["frames"])) for row in csv.DictReader(file)]
    return [row for row in rows if row[1]]


# --- what they share ----------------------------------------------------------------------------


def split(options: Options) -> Iterator[Row]:
    """How actors and learner best share these cores, in local training of Pong."""
    yield ("agent", "actors", "E", "learner's threads", "steps/s", "of the best")
    cores = os.cpu_count() or 1
    choices = [(cores, 16, max(1, cores // 2))]  # the defaults, first
    choices += [(cores, 8, choices[0][2]), (cores, 32, choices[0][2])]
    choices += [(max(1, cores - 1), 32, 1), (cores, 16, cores)]
    for name in AGENTS[1:]:
        rates = []
        for actors, num_envs, threads in choices:
            flags = [f"--num_actors={actors}", f"--num_envs={num_envs}"]
            secs = options.training_secs
            rates.append(_train(LEVEL, name, secs, *flags, f"--learner_threads={threads}"))
        for (actors, num_envs, threads), rate in zip(choices, rates, strict=True):
            values = (actors, num_envs, threads, f"{rate:,.0f}", f"{rate / max(rates):.2f}")
            yield (name, *map(str, values))


def steps_on_the_wire(options: Options) -> Iterator[Row]:
    """Bytes of an agent step (all fields and frames, lossless) and the actor's time for coding."""
    played = dict(one.split("=", 1) for one in options.play.split(",") if one)
    return wire.steps(2 * options.secs if options.quick else 8.0, played)


def pulls(options: Options) -> Iterator[Row]:
    """Bytes of weights: of one pull, and MB a second of 45 actors of a learner.

    Each makes 700 steps/s in 16 environments; weights have 5 versions a second; by relays of 12.
    """
    return wire.pulls()


def endpoint(options: Options) -> Iterator[Row]:
    """One endpoint fed by 64 simulated actors over TCP, all of them on this machine's cores."""
    return wire.endpoint(3 * options.secs if options.quick else 8.0)


def distribution(options: Options) -> Iterator[Row]:
    """From an update to "each of 64 actors has its weights", ResNet-LSTM, all asking at once."""
    return wire.distribution(options.rounds if options.quick else 15)


PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "sampler": sampler,
    "acting": acting,
    "learning": learning,
    "end_to_end": end_to_end,
    "joint": joint,
    "split": split,
    "steps_on_the_wire": steps_on_the_wire,
    "pulls": pulls,
    "endpoint": endpoint,
    "distribution": distribution,
}


def _config(**changes) -> Config:
    values = {"level_name": LEVEL, "num_envs": NUM_ENVS, "unroll_length": 20, **changes}
    return Config(**values)


def _rate(step: Callable[[], int], secs: float) -> float:
    """Agent steps per second of a function that returns how many it made."""
    step()
    begun, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < secs:
        steps += step()
    return steps / passed


def _sides(sides: tuple[list[float], list[float]]) -> tuple[str, str, str]:
    ours, other = map(statistics.median, sides)
    ratios = [one / two for one, two in zip(*sides, strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{ours:,.0f}", f"{other:,.0f}", f"{statistics.median(ratios):.2f} ({spread})"


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of it, less steady")
    parser.add_argument("--brief", action="store_true", help="only to see that each part runs")
    parser.add_argument("--only", default="", help=f"of {','.join(PARTS)}")
    parser.add_argument(
        "--play", default="", help="GAME=LOGDIR,...: runs whose policies play for the wire's bytes"
    )
    options = parser.parse_args(namespace=Options())
    options.quick |= options.brief
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a training does not outlive it
    chosen = options.only.split(",") if options.only else list(PARTS)
    lines = [f"{datetime.date.today()}, {os.cpu_count()} cores, {_processor()}."]
    print(lines[0], flush=True)
    for name in chosen:
        part = PARTS[name]
        rows = []
        print(f"\n{inspect.getdoc(part)}\n", flush=True)
        for row in part(options):
            rows.append(f"| {' | '.join(row)} |")
            if len(rows) == 1:
                rows.append("| --- " * len(row) + "|")
            print("\n".join(rows[-2:] if len(rows) == 2 else rows[-1:]), flush=True)
        lines += ["", str(inspect.getdoc(part)), "", *rows]
    if not options.only and not options.quick:
        path = ROOT / "sandbox" / "speed.md"
        text = path.read_text()
        made = f"{BEGIN}\n" + "\n".join(lines) + f"\n{END}"
        path.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
