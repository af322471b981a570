"""Runs one experiment's command and writes down what became of it.

    python -m impala_torch.runner.job DIRECTORY

Between every runner and every command: so a state is right even where the runner was killed, or
is a batch script on another host. SIGTERM or SIGINT stops the command as Ctrl-C does; a second one
ends it at once.
"""

import ctypes
import dataclasses
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from impala_torch.machine import processes
from impala_torch.runner import state
from impala_torch.runner.state import Status

BUSY = 75  # the exit code where another runner has the experiment
_POLL_SECS = 0.1
_STOP_SECS = 120.0  # how long a command may take to write its checkpoint
_END_SECS = 10.0
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Returns the command's exit code, 128 + N where signal N ended it."""
    processes.end_with_parent()
    directory = pathlib.Path(argv[1])
    with state.lock(directory) as free:
        if not free:
            print(f"{directory} is being run by another runner", file=sys.stderr)
            return BUSY
        code = _run(directory)
    return code if code >= 0 else 128 - code


def _run(directory: pathlib.Path) -> int:
    began = time.monotonic()
    planned = state.read(directory)
    running = dataclasses.replace(
        planned,
        status=Status.RUNNING,
        started=_now(),
        starts=planned.starts + 1,
        slurm_job=os.environ.get("SLURM_JOB_ID", ""),
    )
    stops = _Stops()
    state.write(directory, running)
    _say(f"start {running.starts}: {shlex.join(running.command)}")
    try:
        code = _wait(_start(running.command), stops)
    except OSError as error:
        _say(f"cannot run {running.command[0]}: {error.strerror}")
        code = 127
    # A command that was told to stop may well end with 0, and has not finished for that.
    status = Status.STOPPED if stops.count else Status.FAILED if code else Status.FINISHED
    ended = dataclasses.replace(
        running,
        status=status,
        exit_code=code,
        ended=_now(),
        secs=round(time.monotonic() - began, 1),
    )
    state.write(directory, ended)
    _say(f"{status} with exit code {code} after {ended.secs:.0f} s")
    return code


class _Stops:
    """Counts the signals that ask for an end."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, *_: object) -> None:
        self.count += 1


def _start(command: Sequence[str]) -> subprocess.Popen:
    """The command in a process group of its own, which ends with this process."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # A shell ignores it for what it starts in the background, and children inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare
    )


def _wait(child: subprocess.Popen, stops: _Stops) -> int:
    """The command's exit code. Its whole group gets what a terminal would send it."""
    told, deadline = 0, 0.0
    escalation = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    while child.poll() is None:
        # Asked to again: no more patience.
        wanted = min(stops.count, 1) if stops.count < 2 else len(escalation)
        late = bool(told) and time.monotonic() > deadline
        if told < len(escalation) and (wanted > told or late):
            number = signal.SIGKILL if wanted > 1 else escalation[told]
            told = len(escalation) if number is signal.SIGKILL else told + 1
            deadline = time.monotonic() + (_STOP_SECS if told == 1 else _END_SECS)
            _say(f"{number.name} to the command")
            _signal(child, number)
        time.sleep(_POLL_SECS)
    return child.returncode


def _signal(child: subprocess.Popen, number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:  # it ended meanwhile, and nobody has waited for it yet
        return


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _say(words: str) -> None:
    print(f"[runner {time.strftime('%Y-%m-%d %H:%M:%S')}] {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
