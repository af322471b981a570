"""Sample mode: random actions through the actors' environments, without network or learner.

What it prints bounds the agent steps per second that any training on this machine can reach.
"""

import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from impala_torch import environments
from impala_torch.acting.seeds import seeds_of
from impala_torch.environments import timeout
from impala_torch.flags import exit_codes
from impala_torch.flags.config import Config
from impala_torch.flags.errors import EnvironmentFault, UserError
from impala_torch.flags.shares import shared_out
from impala_torch.machine import cores, processes

_WARM_STEPS = 50
_END_SECS = 5.0
_ROWS = 997  # of random actions, made before the clock runs


class Failed(RuntimeError):
    """A process that measures ended with an error."""


class Rates(NamedTuple):
    """What sampling reached, over all processes."""

    steps_per_sec: float  # agent steps
    frames_per_sec: float  # environment frames
    processes: int
    num_envs: int  # E of each


def run(config: Config) -> str:
    """Samples, and says in a line what that reached."""
    rates = measure(config)
    return (
        f"{rates.steps_per_sec:,.0f} agent steps/s, {rates.frames_per_sec:,.0f} frames/s "
        f"({rates.processes} process(es) of {rates.num_envs} environments, random actions)"
    )


def measure(config: Config) -> Rates:
    """Steps E environments in each of --num_actors processes for --sample_secs.

    Raises:
      UserError: the level cannot be.
    """
    # Here first: a mistake is told once, in words.
    level = environments.level_of(config)
    environments.environment_spec(level)
    count = config.num_actors or cores.usable()
    config = shared_out(config, 1, count)
    steps = sum(side_by_side(_sample, config, count))
    return Rates(steps, steps * level.num_action_repeats, count, config.num_envs)


def side_by_side(play: Callable[..., None], config: Config, count: int) -> list[Any]:
    """What ``count`` processes told that play at the same time.

    Args:
      play: run in each as ``play(config, task, together, tell)``: gets ready, waits at the
        barrier ``together``, and calls ``tell`` with what it found. A function of a module.
      config: the flags.
      count: of processes.

    Raises:
      Failed: one of them did.
    """
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(count)
    left: dict[Any, tuple[Any, Any]] = {}
    results = []
    try:
        for task in range(count):
            here, there = context.Pipe(duplex=False)
            args = (os.getpid(), there, play, config, task, together)
            worker = context.Process(target=_told, args=args, daemon=True)
            worker.start()
            there.close()
            left[worker.sentinel] = worker, here
        while left:  # whichever ends first: the others would wait for one that failed
            for sentinel in multiprocessing.connection.wait(list(left)):
                worker, here = left.pop(sentinel)
                worker.join()
                try:
                    results.append(here.recv() if here.poll() else None)
                except EOFError:
                    results.append(None)
                if worker.exitcode or results[-1] is None:
                    raise Failed(
                        f"a measuring process ended with exit code {worker.exitcode} before it was "
                        "through: see above"
                    )
    finally:
        for worker, _ in left.values():
            worker.terminate()
        for worker, _ in left.values():
            worker.join(_END_SECS)
            if worker.is_alive():
                worker.kill()
    return results


def _told(
    parent: int, there: Any, play: Callable[..., None], config: Config, task: int, together: Any
) -> None:
    """Runs ``play``; what an environment does wrong is told in a sentence."""
    processes.end_with(parent)
    timeout.limit(config.env_timeout)
    try:
        play(config, task, together, there.send)
    except (EnvironmentFault, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_codes.FAILED)
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)


def _sample(config: Config, task: int, together: Any, tell: Callable[[float], None]) -> None:
    """One process: tells its agent steps per second."""
    seeds = seeds_of(config.seed, 0, task)
    environment = environments.make_for(config, seeds.environment)
    shape = (_ROWS, config.num_envs)
    rng = np.random.default_rng(seeds.actions)
    actions = rng.integers(0, environment.spec.num_actions, shape, dtype=np.int64)
    environment.reset()
    for row in range(_WARM_STEPS):
        environment.step(actions[row % _ROWS])
    together.wait()
    begun, steps = time.perf_counter(), 0
    while (secs := time.perf_counter() - begun) < config.sample_secs:
        environment.step(actions[steps % _ROWS])
        steps += 1
    tell(steps * config.num_envs / secs)
    environment.close()
