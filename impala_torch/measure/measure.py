"""What the parts of training cost on this machine: what ``frontend.plan`` plans with.

    python -m impala_torch.measure.measure FLAGS

takes the flags of training. Each part runs for --sample_secs: processes that only step
environments, whole actors (both one for each core, or --num_actors), a learner's updates on ready
data, an endpoint's decoding. Prints one JSON object; on standard error what it is at.
"""

import contextlib
import json
import pathlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from impala_torch import agents, environments
from impala_torch.acting.player import Player, make_acting_agent
from impala_torch.acting.seeds import seeds_of
from impala_torch.acting.unrolls import UnrollCollector
from impala_torch.agents import weights
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.run_spec import run_spec_of
from impala_torch.flags import command_line, exit_codes
from impala_torch.flags.config import Config
from impala_torch.flags.shares import shared_out
from impala_torch.learner import Learner
from impala_torch.learning.feed import make_batch
from impala_torch.learning.group import Group
from impala_torch.machine import cores, link_speed, sockets
from impala_torch.measure import sample
from impala_torch.report.tally import Tally
from impala_torch.structures import empty_unroll

_WARM_UPDATES = 3
_FEWEST_UPDATES = 10  # fewer say little of how much updates differ
_SMALLER = 4  # a batch so many times smaller tells what of an update is fixed
_BATCH_SECS = 60.0
_START_SECS = 120.0  # that actors may take to start beside each other
_QUARTILES = 1.349  # standard deviations between the quartiles of normal values


def measure(config: Config) -> dict[str, Any]:
    """The costs, by the names of ``plan.scaling.Costs``, and the speed of this machine's link.

    Raises:
      UserError: the level or the agent cannot be.
    """
    spec = environments.spec_for(config)
    agents.make_for(config, spec)  # a mistake in its name is told at once
    count = config.num_actors or cores.usable()
    config = shared_out(config, 1, count)
    _tell(f"{count} process(es) that only step environments", config)
    sampler = sample.measure(config).steps_per_sec / count
    _tell(f"{count} actor(s)", config)
    actor, step_bytes = _actors(config, count)
    _tell("a learner's updates, of two batch sizes", config)
    learner = _learner(config)
    buffers = record(config)
    _tell("an endpoint's decoding", config)
    return {
        "level_name": config.level_name,
        "agent_name": config.agent_name,
        "batch_size": config.batch_size,
        "unroll_length": config.unroll_length,
        "num_envs": config.num_envs,
        "sampler_steps_per_sec": sampler,
        "actor_steps_per_sec": actor,
        "actors_per_host": count,
        **learner,
        "bytes_per_step": step_bytes,
        "endpoint_steps_per_sec": _decoding(config, buffers),
        "link_bytes_per_sec": link_speed.link_bytes_per_sec(_outward_ip()),
    }


# --- actors -------------------------------------------------------------------------------------


def record(config: Config) -> list[bytes]:
    """An unroll's buffers as an actor with random weights sends them: E environments, T steps."""
    act, close = _player(config, 0)
    buffers = [bytes(buffer) for buffer in act()]
    close()
    return buffers


def _player(config: Config, task: int) -> tuple[Callable[[], list], Callable[[], None]]:
    """An actor without a learner: plays and encodes the next unroll; and its end."""
    torch.set_num_threads(config.actor_threads or 1)
    agent, level = make_acting_agent(config, tried=True), environments.level_of(config)
    seeds = seeds_of(config.seed, 0, task)
    environment = environments.make_for(config, seeds.environment)
    collector = UnrollCollector(Player(agent, environment, seeds.actions), config.unroll_length)
    codec = UnrollCodec(run_spec_of(config, level, environment.spec, agent.state_size))
    return lambda: codec.encode(collector.collect(0)), environment.close


def _actors(config: Config, count: int) -> tuple[float, float]:
    """Agent steps per second of one of ``count`` actors that run together, and a step's bytes."""
    told = sample.side_by_side(_act, config, count)
    return statistics.fmean(rate for rate, _ in told), statistics.fmean(size for _, size in told)


def _act(
    config: Config, task: int, together: Any, tell: Callable[[tuple[float, float]], None]
) -> None:
    act, close = _player(config, task)
    act()
    together.wait(_START_SECS)
    begun, unrolls, size = time.perf_counter(), 0, 0
    while (secs := time.perf_counter() - begun) < config.sample_secs:
        size += sum(map(len, act()))
        unrolls += 1
    steps = unrolls * config.num_envs * config.unroll_length
    tell((steps / secs, size / steps))
    close()


# --- the learner --------------------------------------------------------------------------------


@contextlib.contextmanager
def ready_learner(
    config: Config, group: Group, buffers: list[bytes]
) -> Iterator[tuple[Learner, Callable[[], None]]]:
    """A learner that never waits for actors, and a function that makes its next update.

    Args:
      config: the flags; --learner_host and --logdir are replaced.
      group: the learners; all ranks make their updates together.
      buffers: what ``record`` gave, which it gets again and again, decoded beside the updates.
    """
    with tempfile.TemporaryDirectory() as folder, sockets.private_address() as address:
        own = {"learner_host": address, "actor_hosts": "", "key_file": "", "logdir": folder}
        # What it learns from is as old as it may be: the same again and again.
        config = config.replace(**own, with_wandb=False, max_policy_lag=0)
        logdir = pathlib.Path(folder)
        learner = Learner(config, group, logdir)
        codec, batches = UnrollCodec(learner.spec), learner.batches
        tally = Tally(learner.spec.environment.num_actions)
        if group.size > 1:
            batches.allow(batches.capacity)  # nothing is shared: each learner feeds itself

        def update() -> None:
            if batches.depth < 1:
                batches.lend(config.num_envs)
            while batches.reserve(config.num_envs):
                unroll = codec.decode_fields(buffers, config.num_envs, learner.state.updates)
                batches.put((b"", b""), unroll, config.num_envs)
            batch = learner.feed.get(_BATCH_SECS)
            if batch is None:
                raise RuntimeError("no batch was assembled")
            learner.update(batch, tally)

        try:
            yield learner, update
        finally:
            learner.close()


def _learner(config: Config) -> dict[str, float]:
    part = max(1, config.batch_size // _SMALLER)
    # A message is decoded within one update: of more unrolls than the smaller batch has, it would
    # count in every update of one batch and in a few of the other.
    config = config.replace(num_envs=min(config.num_envs, part))
    buffers = record(config)
    with ready_learner(config, Group(), buffers) as (learner, update):
        quarters = _quarters(update, config.sample_secs)
        found = {
            "update_secs": quarters[1],
            "update_jitter": (quarters[2] - quarters[0]) / _QUARTILES / quarters[1],
            "overlap_secs": overlap_secs(learner),
            "adding_beside": float(learner.device.type == "cuda"),
            "averagings_per_update": config.batch_reuse
            * config.num_minibatches
            / config.batches_per_step,
            "gradient_bytes": sum(parameter.nbytes for parameter in learner.parameters),
            "weights_bytes": weights.pack(learner.agent, config.weights_precision).nbytes,
        }
    part_secs = quarters[1]
    if part < config.batch_size:
        virtual = part * config.batches_per_step if config.virtual_batch_size else 0
        smaller = config.replace(batch_size=part, virtual_batch_size=virtual)
        # After the other is gone: where one batch fills a GPU, two learners have no room.
        with ready_learner(smaller, Group(), buffers) as (_, update):
            part_secs = _quarters(update, config.sample_secs)[1]
    fixed = fixed_secs(config.batch_size, quarters[1], part, part_secs)
    return found | {"update_fixed_secs": fixed}


def _quarters(update: Callable[[], None], sample_secs: float) -> list[float]:
    """Quartiles of the seconds that an update takes."""
    for _ in range(_WARM_UPDATES):
        update()
    secs: list[float] = []
    begun = time.perf_counter()
    while len(secs) < _FEWEST_UPDATES or time.perf_counter() - begun < sample_secs:
        started = time.perf_counter()
        update()
        secs.append(time.perf_counter() - started)
    return statistics.quantiles(secs, n=4)


def fixed_secs(batch: int, secs: float, part: int, part_secs: float) -> float:
    """Of the seconds of an update, those that do not depend on its batch: a line through two.

    Args:
      batch, secs: unrolls and seconds of an update.
      part, part_secs: the same of a smaller one; all is fixed where there is none smaller.
    """
    if part == batch:
        return secs
    fixed = (part_secs * batch - secs * part) / (batch - part)
    # Noise, caches that only small batches fit: no part is negative or larger than the whole.
    return min(max(0.0, fixed), secs)


def overlap_secs(learner: Learner) -> float:
    """How long backward goes on after a gradient is ready: a mean over the gradients' bytes.

    Args:
      learner: one that averages with no other.
    """
    batch = learner.feed.on_device(
        make_batch(learner.spec, learner.config.batch_size, learner.device)
    )
    clock = _GpuClock() if learner.device.type == "cuda" else _Clock()
    ready: list[tuple[int, Any]] = []
    hooks = [
        parameter.register_post_accumulate_grad_hook(
            lambda ended: ready.append((ended.nbytes, clock.now()))
        )
        for parameter in learner.parameters
    ]
    found = []
    for _ in range(_FEWEST_UPDATES):
        part = next(learner.algorithm.parts(learner.prepared(batch), 0))
        loss, _ = learner.algorithm.loss(part, learner.config.entropy_cost)
        learner.optimizer.zero_grad()
        ready.clear()
        loss.backward()
        end = clock.now()
        left = sum(size * clock.secs(since, end) for size, since in ready)
        found.append(left / sum(size for size, _ in ready))
    for hook in hooks:
        hook.remove()
    return statistics.median(found)


class _Clock:
    """Moments of what a CPU does."""

    def now(self) -> Any:
        return time.perf_counter()

    def secs(self, begun: Any, ended: Any) -> float:
        return ended - begun


class _GpuClock(_Clock):
    """Moments of what a GPU does, which is behind the program that tells it what to do."""

    def now(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def secs(self, begun: Any, ended: Any) -> float:
        ended.synchronize()
        return begun.elapsed_time(ended) / 1e3


def _decoding(config: Config, buffers: list[bytes]) -> float:
    """Agent steps per second from buffers into columns of a batch, in one thread."""
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    state_size = agents.make_for(config, spec).state_size
    codec = UnrollCodec(run_spec_of(config, level, spec, state_size))
    batch = empty_unroll(spec, config.unroll_length, state_size, config.num_envs)
    begun, unrolls = time.perf_counter(), 0
    while (secs := time.perf_counter() - begun) < config.sample_secs / 2:
        unroll = codec.decode_fields(buffers, config.num_envs, 0)
        for env in range(config.num_envs):
            codec.decode_column(unroll, env, batch, env)
        unrolls += config.num_envs
    return unrolls * config.unroll_length / secs


# --- this machine -------------------------------------------------------------------------------


def _tell(what: str, config: Config) -> None:
    print(f"measuring {what}: {config.sample_secs:.0f} s", file=sys.stderr, flush=True)


def _outward_ip() -> str:
    """This machine's address towards other networks; empty without a way there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of no host; a datagram's socket sends nothing yet
        except OSError:
            return ""
        return probe.getsockname()[0]


def _print(config: Config) -> None:
    try:
        print(json.dumps(measure(config)), flush=True)
    except sample.Failed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_codes.FAILED)


if __name__ == "__main__":
    sys.exit(command_line.main(sys.argv, _print))
