"""The evaluator of a run, as its learner sees it: a process that is started, watched and ended."""

import logging
import pathlib
import subprocess
import time
from collections.abc import Callable
from types import TracebackType

from impala_torch.flags import command_line
from impala_torch.flags.config import Config
from impala_torch.machine import processes

log = logging.getLogger(__name__)

_END_SECS = 5.0
_LAST_SECS = 900.0  # that the evaluation after training may take


class EvaluationProcess:
    """Evaluations beside training, if --eval_interval_frames asks for them; a context manager.

    It starts with the block. After the block it may evaluate the last weights, unless training
    failed or is to stop, and has ended then.
    """

    def __init__(
        self, config: Config, logdir: pathlib.Path, should_stop: Callable[[], bool]
    ) -> None:
        """
        Args:
          config: the flags of the learner, at whose --learner_host weights are to be had.
          logdir: the run's directory, for results and the process's log.
          should_stop: says that nobody wants to wait any more.
        """
        self._config, self._asked_to_stop = config, should_stop
        self._logdir = logdir
        self._log = logdir / "workers" / "evaluator-0-0.log"
        self._process: subprocess.Popen | None = None
        self._told = False

    def __enter__(self) -> "EvaluationProcess":
        if self._config.eval_interval_frames:
            flags = command_line.to_argv(
                self._config, job_name="evaluator", task=0, logdir=str(self._logdir)
            )
            self._process = processes.spawn(
                "impala_torch",
                flags,
                self._log,
                {"CUDA_VISIBLE_DEVICES": ""},  # the learner's GPU is the learner's
            )
            log.info("started the evaluator; its log: %s", self._log)
        return self

    def should_stop(self) -> bool:
        """The answer of what it was given. Says so, once, if the evaluator has ended before
        training, which goes on."""
        self._check()
        return self._asked_to_stop()

    def _check(self) -> None:
        if self._process is None or self._told or self._process.poll() is None:
            return
        self._told = True
        log.error(
            "the evaluator ended with exit code %d, and there are no more evaluations; the end of "
            "its log:\n%s",
            self._process.returncode,
            processes.last_words(self._log),
        )

    def __exit__(
        self,
        failure: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        if process is None:
            return
        told, deadline = False, time.monotonic() + _LAST_SECS
        while process.poll() is None and failure is None and not self._asked_to_stop():
            if not told:
                words = "waiting for the last evaluation, %.0f s at most; Ctrl-C leaves it out"
                log.info(words, _LAST_SECS)
                told = True
            if time.monotonic() > deadline:
                log.warning(
                    "the last evaluation is left out: it took longer than %.0f s; --mode=test "
                    "--logdir=%s plays it at leisure",
                    _LAST_SECS,
                    self._logdir,
                )
                break
            time.sleep(0.2)
        if process.poll() is None:
            process.terminate()
            processes.end([process], _END_SECS)
        else:
            self._told = self._told or process.returncode == 0
            self._check()
