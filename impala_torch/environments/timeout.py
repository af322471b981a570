"""An end to waiting for environments that do not return: their process ends, and says where."""

import faulthandler
import logging
import os
import threading
import time

import numpy as np

from impala_torch.environments.base import Environment
from impala_torch.flags import exit_codes
from impala_torch.structures import EnvOutput

log = logging.getLogger(__name__)


class TimedEnvironment(Environment):
    """Environments whose every reset and step has to return in time.

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
        threading.Thread(target=self._watch, name="env_timeout", daemon=True).start()

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
        self._environment.close()

    def _watch(self) -> None:
        tick = min(1.0, self._secs / 4)
        before, waited, last = None, 0.0, time.monotonic()
        while not self._closed.wait(tick):
            since, now = self._since, time.monotonic()
            # Time in which the process itself was frozen is not the environment's.
            waited = 0.0 if since is None or since != before else waited + min(now - last, 2 * tick)
            before, last = since, now
            if waited < self._secs:
                continue
            log.error(
                "%s: it has not returned for %.0f s (--env_timeout=%g); this process ends, and "
                "what its threads were at follows",
                self.place.words(self._level_name),
                waited,
                self._secs,
            )
            faulthandler.dump_traceback(all_threads=True)
            os._exit(exit_codes.FAILED)
