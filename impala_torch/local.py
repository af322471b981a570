"""Training on this machine alone: a learner here and --num_actors actor processes."""

import contextlib
import logging
import pathlib
import subprocess
from collections.abc import Callable, Sequence

from impala_torch.evaluation.process import EvaluationProcess
from impala_torch.flags import command_line
from impala_torch.flags.config import Config
from impala_torch.flags.shares import shared_out
from impala_torch.learner import Learner
from impala_torch.learning.group import Group
from impala_torch.machine import cores, processes, sockets

log = logging.getLogger(__name__)

_END_SECS = 10.0


def run(config: Config, logdir: pathlib.Path, should_stop: Callable[[], bool]) -> None:
    """Trains with actor processes of this machine; all have ended when it returns.

    Args:
      config: the flags; --learner_host and --actor_hosts are chosen here.
      logdir: the run's directory, ready to be written to.
      should_stop: asked between updates.

    Raises:
      RuntimeError: an actor or the learner failed; see its log.
    """
    count = cores.usable()
    num_actors = config.num_actors or count
    hosts = ",".join(f"127.0.0.1:{9001 + task}" for task in range(num_actors))
    with contextlib.ExitStack() as stack:
        config = shared_out(config, 1, num_actors).replace(
            num_actors=num_actors,
            learner_host=stack.enter_context(sockets.private_address()),
            actor_hosts=hosts,
            learner_threads=config.learner_threads or max(1, count // 2),
        )
        learner = Learner(config, Group(), logdir)
        actors: list[subprocess.Popen] = []
        evaluation = stack.enter_context(EvaluationProcess(config, logdir, should_stop))
        try:
            for task in range(num_actors):
                flags = command_line.to_argv(config, job_name="actor", task=task)
                path = logdir / "workers" / f"actor-0-{task}.log"
                actors.append(processes.spawn("impala_torch", flags, path))
            log.info("started %d actor(s); their logs: %s", len(actors), logdir / "workers")
            watch = _Watch(actors, logdir)
            learner.train(lambda: evaluation.should_stop() or watch.failed())
            watch.check()
        finally:
            learner.close()
            processes.end(actors, _END_SECS)


class _Watch:
    """Notices actors that ended on their own."""

    def __init__(self, actors: Sequence[subprocess.Popen], logdir: pathlib.Path) -> None:
        self._actors = actors
        self._logdir = logdir
        self._told: set[int] = set()

    def failed(self) -> bool:
        """True when no actor is left; says so of each one that ended."""
        for task, actor in enumerate(self._actors):
            if actor.poll() is not None and task not in self._told:
                self._told.add(task)
                log.error(
                    "actor %d ended with exit code %d; the end of its log:\n%s",
                    task,
                    actor.returncode,
                    self._tail(task),
                )
        return len(self._told) == len(self._actors)

    def check(self) -> None:
        """Raises RuntimeError when no actor was left to go on with."""
        if self._actors and len(self._told) == len(self._actors):
            raise RuntimeError("all actors have ended: see their logs above")

    def _tail(self, task: int) -> str:
        path = self._logdir / "workers" / f"actor-0-{task}.log"
        lines = path.read_text(errors="replace").splitlines()[-10:]
        return "\n".join(f"    {line}" for line in lines)
