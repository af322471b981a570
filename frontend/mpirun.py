"""Runs mpirun so that Ctrl-C lets its ranks end by themselves.

    python frontend/mpirun.py mpirun ARGUMENTS...

Open MPI's own way is to wait ``odls_base_sigkill_timeout`` seconds before it sends SIGTERM, as
long again before SIGKILL, to take all of that time even where the ranks have ended, and to
report a failure. Here mpirun has a process group of its own, out of reach of the terminal's
Ctrl-C, and the ranks get SIGTERM at once; when they have written their checkpoint mpirun ends
with their exit code. A second signal goes to mpirun, which then ends them its own way.

It reaches the ranks of this machine: all of them, as long as learners share one.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(argv: Sequence[str]) -> int:
    """Runs ``argv`` to its end. Returns its exit code, 128 + n where signal n ended it."""
    # Between its start and the handlers' a signal would leave it behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_prepare_child,
    )
    asked = False

    def stop(number: int, _: object) -> None:
        nonlocal asked
        ranks = [] if asked else _children(process.pid)
        asked = True
        if not ranks and process.returncode is None:
            process.terminate()
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(rank, signal.SIGTERM)

    for number in _SIGNALS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    code = process.wait()
    return 128 - code if code < 0 else code


def _prepare_child() -> None:
    """Lets signals through again, and has the kernel end mpirun when this wrapper is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _children(pid: int) -> list[int]:
    """Ids of a process's own children; none where the kernel does not tell."""
    try:
        return [
            int(child)
            for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
