"""What a rank does in the tests of the watchdog: run by mpirun.

mpirun -np 2 python tests/watchdog_job.py WHAT STALL_SECS OUT

WHAT is how rank 1 leaves rank 0 waiting:
  frozen      it is stopped, where both agree (by SIGSTOP, as a debugger or a virtual machine does)
  averaging   the same where both average gradients
  apart       it averages gradients, rank 0 agrees
  stopping    as frozen, and rank 0 is asked to stop
or what both do for four times STALL_SECS, after which they end well:
  saving      rank 1 writes a checkpoint, rank 0 averages gradients
  waiting     they agree, twice a second, that there is no data
  back        rank 1 is stopped, and goes on before it is too late
"""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import torch

from impala_torch.learning import group as groups
from impala_torch.learning.watchdog import Watchdog
from impala_torch.report import rundir


def freeze(secs: float) -> None:
    """Stops this process, and has it go on after ``secs``; 0 is never."""
    if secs:
        script = f"sleep {secs}; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", script], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def work(what: str, group: groups.Group, stall_secs: float) -> None:
    ones = torch.ones(1000)
    group.average(ones)  # what is slow the first time
    second = group.rank == 1
    if what in ("frozen", "stopping") and second:
        freeze(0)
    elif what == "averaging":
        if second:
            freeze(0)
        group.average(ones)
    elif what == "apart":
        if second:
            group.average(ones)
        group.agree([1])
    elif what == "saving":
        if second:
            with group.at(groups.SAVING):
                time.sleep(4 * stall_secs)
        group.average(ones)
    elif what == "waiting":
        until = time.monotonic() + 4 * stall_secs
        while group.agree([int(time.monotonic() < until)])[0]:
            with group.at(groups.WAITING):
                time.sleep(0.5)
    elif what == "back":
        if second:
            freeze(stall_secs)
        group.agree([1])
    time.sleep(2.5)  # that the watchdogs may say that it goes on
    group.agree([1])


def main(what: str, stall_secs: float, out: pathlib.Path) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    group = groups.join(stall_secs=60)
    rundir.log_to(out / f"rank-{group.rank}.log")
    (out / f"pid-{group.rank}").write_text(str(os.getpid()))
    with Watchdog(group, stall_secs, lambda: what == "stopping" and group.rank == 0):
        group.phase = groups.LEARNING
        work(what, group, stall_secs)
        group.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), pathlib.Path(sys.argv[3]))
