"""Runs learners' command so that a signal lets its ranks end by themselves.

    python frontend/mpirun.py mpirun ARGUMENTS...

Open MPI's own way with Ctrl-C is to wait ``odls_base_sigkill_timeout`` seconds before it sends
SIGTERM, as long again before SIGKILL, to take all of that time even where the ranks have ended,
and to report a failure; Slurm's srun ends its tasks at once. Here mpirun (or srun) has a process
group of its own, out of reach of the terminal's Ctrl-C, and gets SIGUSR1, which it passes on to its
ranks on all hosts at once and which means stop to them; when they have written their checkpoint it
ends with their exit code. A second signal ends it its own way.
"""

import ctypes
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Job:
    """Learners that run: mpirun with its ranks, or one process that needs none."""

    def __init__(self, argv: Sequence[str]) -> None:
        # What passes a signal on; it would end its ranks for SIGTERM. Options come after it.
        launches = any(pathlib.Path(word).name in ("mpirun", "srun") for word in _program(argv))
        self._first = signal.SIGUSR1 if launches else signal.SIGTERM
        self._second = signal.SIGTERM if launches else signal.SIGINT
        self._asked = False
        # Between its start and the handlers' a signal would leave it behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_prepare_child
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Asks the ranks to stop with a checkpoint; the second time, ends them."""
        if self._process.returncode is None:
            self._process.send_signal(self._second if self._asked else self._first)
        self._asked = True

    def wait(self) -> int:
        """Waits for the end. Returns the exit code, 128 + n where signal n ended it."""
        code = self._process.wait()
        return 128 - code if code < 0 else code


def _program(argv: Sequence[str]) -> Sequence[str]:
    """The words of a command up to its program, with what ``env`` is told before it."""
    for index, word in enumerate(argv):
        is_of_env = word in ("env", "-u") or argv[index - 1] == "-u" or "=" in word
        if not (argv[0] == "env" and is_of_env):
            return argv[: index + 1]
    return argv


def _prepare_child() -> None:
    """Lets signals through again, and has the kernel end the job when this process is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def run(argv: Sequence[str]) -> int:
    """Runs ``argv`` to its end. Returns its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    job = Job(argv)
    for number in SIGNALS:
        signal.signal(number, lambda *_: job.stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return job.wait()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
