"""An end to waiting for environments that do not return: their process ends, and says where."""

import contextlib
import faulthandler
import logging
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from impala_torch.environments.base import Environment
from impala_torch.flags import exit_codes
from impala_torch.structures import EnvOutput

log = logging.getLogger(__name__)

_limit_secs = 0.0  # of this process; 0 = none


def limit(secs: float) -> None:
    """From now on this process ends where ``within`` takes longer; 0 = never."""
    global _limit_secs
    _limit_secs = secs


@contextlib.contextmanager
def within(level_name: str, doing: str, secs: float | None = None) -> Iterator[None]:
    """Ends this process if the block, which runs an environment's own code, takes too long.

    Args:
      level_name: of the environment, to be told.
      doing: what is done to it, such as "being made".
      secs: that it may take; None = this process's ``limit``.
    """
    secs = _limit_secs if secs is None else secs
    if not secs:
        yield
        return
    done, begun = threading.Event(), time.monotonic()
    _watch(done, secs, lambda: begun, lambda: f"--level_name={level_name}, {doing}")
    try:
        yield
    finally:
        done.set()


class TimedEnvironment(Environment):
    """Environments whose every reset and step has to return in time, and their end too.

    One that does not cannot be interrupted: it may stand in C, or hold locks. So the process ends
    (``exit_codes.FAILED``), its log says which environment at which step with which action, and
    where each thread stood; whoever started the process starts it again.
    """

    def __init__(self, environment: Environment, level_name: str, secs: float) -> None:
        """
        Args:
          environment: what is stepped.
          level_name: its name, to be told.
          secs: that a reset or step may take.
        """
        self.spec, self.num_envs = environment.spec, environment.num_envs
        self.frames_per_sec = environment.frames_per_sec
        self.place = environment.place
        self._environment, self._level_name, self._secs = environment, level_name, secs
        self._since: float | None = None  # a call is under way
        self._closed = threading.Event()
        _watch(self._closed, secs, lambda: self._since, lambda: self.place.words(level_name))

    def reset(self) -> EnvOutput:
        self._since = time.monotonic()
        output = self._environment.reset()
        self._since = None
        return output

    def step(self, actions: np.ndarray) -> EnvOutput:
        self._since = time.monotonic()
        output = self._environment.step(actions)
        self._since = None
        return output

    def close(self) -> None:
        self._closed.set()
        with within(self._level_name, "being closed", self._secs):
            self._environment.close()


def _watch(
    done: threading.Event,
    secs: float,
    since: Callable[[], float | None],
    words: Callable[[], str],
) -> None:
    """Ends this process, from a thread, if a call takes longer than ``secs``.

    Args:
      done: ends the watch.
      secs: that a call may take.
      since: when the call that is under way began; None = none is.
      words: say which it is.
    """

    def look() -> None:
        tick = min(1.0, secs / 4)
        before, waited, last = None, 0.0, time.monotonic()
        while not done.wait(tick):
            began, now = since(), time.monotonic()
            # Time in which the process itself was frozen is not the environment's.
            waited = 0.0 if began is None or began != before else waited + min(now - last, 2 * tick)
            before, last = began, now
            if waited >= secs:
                _end(words(), waited, secs)

    threading.Thread(target=look, name="env_timeout", daemon=True).start()


def _end(words: str, waited: float, secs: float) -> None:
    log.error(
        "%s: it has not returned for %.0f s (--env_timeout=%g); this process ends, and what its "
        "threads were at follows",
        words,
        waited,
        secs,
    )
    faulthandler.dump_traceback(all_threads=True)
    for child in _children():  # what the environment waits for may be a process that it started
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(exit_codes.FAILED)


def _children() -> list[int]:
    found: list[int] = []
    for path in pathlib.Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found
