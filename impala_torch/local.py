"""Training on this machine alone: a learner here and --num_actors actor processes."""

import contextlib
import logging
import pathlib
import subprocess
import time
from collections.abc import Callable

from impala_torch.evaluation.process import EvaluationProcess
from impala_torch.flags import command_line, exit_codes
from impala_torch.flags.config import Config
from impala_torch.flags.shares import shared_out
from impala_torch.learner import Learner
from impala_torch.learning.group import ENDING, Group
from impala_torch.learning.watchdog import Watchdog
from impala_torch.machine import cores, processes, sockets

log = logging.getLogger(__name__)

_END_SECS = 10.0
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # before an actor that died is started again
_LONG_SECS = 60.0  # of an actor that lived so long, the next pause is short again
_MOST_SHORT_LIVES = 20  # in a row
# An actor that its learner has not heard of for so long is ended. Those that play or wait are heard
# of every few seconds.
_HUNG_SECS = 120.0
_LOOK_SECS = 2.0


def run(config: Config, logdir: pathlib.Path, should_stop: Callable[[], bool]) -> None:
    """Trains with actor processes of this machine; all have ended when it returns.

    Args:
      config: the flags; --learner_host and --actor_hosts are chosen here.
      logdir: the run's directory, ready to be written to.
      should_stop: asked between updates.

    Raises:
      ActorsGone: of whom the log tells.
      RuntimeError: the learner failed; see its log.
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
        group = Group()
        watchdog = stack.enter_context(Watchdog(group, config.stall_secs, should_stop))
        learner = Learner(config, group, logdir)
        learner.endpoint.standing = watchdog.status
        evaluation = stack.enter_context(EvaluationProcess(config, logdir, should_stop))
        actors = _Actors(config, logdir, learner.endpoint.silent_processes)
        try:
            actors.start()
            learner.train(lambda: evaluation.should_stop() or actors.are_gone())
            if actors.are_gone():
                raise ActorsGone("all actors have ended: see their logs above")
        finally:
            group.phase = ENDING
            learner.close()
            actors.end()


class ActorsGone(RuntimeError):
    """No actor is left, nor will be."""


class _Actor:
    """A task, its process, and how it has fared."""

    def __init__(self, task: int, process: subprocess.Popen) -> None:
        self.task, self.process = task, process
        self.started = time.monotonic()
        self.due: float | None = None  # when it is started again; None while it runs, or for good
        self.gone = False  # for good
        self.short_lives = 0  # in a row
        self.delay = _FIRST_DELAY
        self.silent = 0.0  # seconds


class _Actors:
    """This machine's actor processes: what dies is started again, as the frontend does it."""

    def __init__(
        self, config: Config, logdir: pathlib.Path, silent_processes: Callable[[], set[int]]
    ) -> None:
        """
        Args:
          config: the flags.
          logdir: where their logs go.
          silent_processes: asks for the ids of those that the learner has not heard of for a
            while, though they were welcomed.
        """
        self._config, self._logdir = config, logdir
        self._silent_processes = silent_processes
        self._looked = time.monotonic()
        self._actors: list[_Actor] = []

    def start(self) -> None:
        """Raises ActorsGone where one cannot be."""
        for task in range(self._config.num_actors):
            try:
                self._actors.append(_Actor(task, self._start(task)))
            except OSError as error:
                raise ActorsGone(f"actor {task} cannot be started: {error}") from error
        count, folder = len(self._actors), self._logdir / "workers"
        log.info("started %d actor(s); their logs: %s", count, folder)

    def are_gone(self) -> bool:
        """Looks after them: whether no actor is left, nor will be."""
        self._end_hung()
        for actor in self._actors:
            if actor.gone:
                continue
            if actor.due is None and actor.process.poll() is not None:
                self._ended(actor)
            elif actor.due is not None and time.monotonic() >= actor.due:
                self._start_again(actor)
        return all(actor.gone for actor in self._actors)

    def end(self) -> None:
        """Waits for them to end by the learner's word, then ends them."""
        processes.end([actor.process for actor in self._actors], _END_SECS)

    def _end_hung(self) -> None:
        """Ends actors that run and are not heard of; they are started again like others."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECS:
            return
        # Time in which this process was frozen too is not theirs.
        secs, self._looked = min(now - self._looked, 2 * _LOOK_SECS), now
        silent = self._silent_processes()
        for actor in self._actors:
            hung = actor.process.pid in silent and actor.process.poll() is None
            actor.silent = actor.silent + secs if hung else 0.0
            if actor.silent >= _HUNG_SECS:
                log.error(
                    "actor %d (process %d) has not been heard of for %.0f s though it runs: ending "
                    "it; the end of its log:\n%s",
                    *(actor.task, actor.process.pid, actor.silent),
                    processes.last_words(self._log_of(actor.task)),
                )
                actor.silent = 0.0
                actor.process.kill()

    def _start_again(self, actor: _Actor) -> None:
        try:
            actor.process, actor.due = self._start(actor.task), None
            actor.started, actor.silent = time.monotonic(), 0.0
        except OSError as error:  # no process, memory or log now; training has the others
            actor.due, actor.delay = time.monotonic() + actor.delay, _LONGEST_DELAY
            log.error("actor %d cannot be started: %s", actor.task, error)

    def _ended(self, actor: _Actor) -> None:
        processes.end_group(actor.process)
        code, now = actor.process.returncode, time.monotonic()
        if now - actor.started > _LONG_SECS:
            actor.short_lives, actor.delay = 0, _FIRST_DELAY
        else:
            actor.short_lives += 1
        if code == exit_codes.USERS_MISTAKE:  # it would end the same way again
            actor.gone, then = True, "it is not started again"
        elif actor.short_lives >= _MOST_SHORT_LIVES:
            actor.gone = True
            then = f"it died {actor.short_lives} times in a row at once, and is not started again"
        else:
            then = f"it is started again in {actor.delay:.0f} s"
            actor.due, actor.delay = now + actor.delay, min(2 * actor.delay, _LONGEST_DELAY)
        words = "actor %d ended with exit code %d: %s; the end of its log:\n%s"
        last_words = processes.last_words(self._log_of(actor.task))
        log.error(words, actor.task, code, then, last_words)

    def _start(self, task: int) -> subprocess.Popen:
        flags = command_line.to_argv(self._config, job_name="actor", task=task)
        return processes.spawn("impala_torch", flags, self._log_of(task))

    def _log_of(self, task: int) -> pathlib.Path:
        return self._logdir / "workers" / f"actor-0-{task}.log"
