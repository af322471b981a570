"""Looks after one learner of a group, from a thread of its own: nothing waits for ever.

Ranks go in step, and neither Horovod nor MPI gives up on one that froze, or that a dead link cut
off: all others would stand still with it, and say nothing. So each rank's watchdog knows what its
rank is at, tells those of the other ranks about it every second, and hears from them. A group
stands still where ranks wait for each other and none of those that are heard of has work of its
own: a batch to learn from, a checkpoint to write. Ranks that have no data agree on that all the
time, and so do not stand still.

A group that stands still is told of in the log, with what is missing. After --stall_secs the
process writes the stacks of its threads there and ends, with an exit code that says so; ``mpirun``
takes the other ranks down with it, frozen ones too, and whoever started it can start it again.
"""

import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from impala_torch.flags import exit_codes
from impala_torch.learning.group import Group, Phase

log = logging.getLogger(__name__)

_TICK_SECS = 1.0
_SILENT_SECS = 10.0  # a rank that was not heard of for so long does not answer
_TELL_SECS = 30.0  # standing still for so long is worth a word; twice as long, another
# What a rank does by itself may take so many times --stall_secs: slow disks, large batches,
# compiling.
_OWN_WORK = 10.0
_STOPPING_SECS = 30.0  # who wants to stop does not wait for a group that stands still
_LOG_SECS = 5.0  # that a word may take to be logged


class _Other(NamedTuple):
    """What was last heard of another rank."""

    phase: Phase
    secs: float  # it had been at that without a sign of going on
    silent: float  # seconds since then


class Watchdog:
    """A rank's; a context manager. Time in which the process itself was frozen does not count."""

    def __init__(
        self,
        group: Group,
        stall_secs: float,
        should_stop: Callable[[], bool],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        """
        Args:
          group: whose rank this is.
          stall_secs: --stall_secs; 0 only tells.
          should_stop: whether somebody wants the run to stop.
          end: what ends the process, given the exit code.
        """
        self._group, self._stall_secs, self._should_stop = group, stall_secs, should_stop
        self._exit = end
        self._others = {
            rank: _Other(group.phase, 0.0, 0.0) for rank in range(group.size) if rank != group.rank
        }
        self._marks = group.marks
        self._phase_secs = 0.0  # since the rank gave a sign of going on
        self._still = 0.0  # since anybody did
        self._first_tell = min(_TELL_SECS, stall_secs / 2) if stall_secs else _TELL_SECS
        self._tell_at = self._first_tell
        self._told = False  # that the rank does not go on
        self._mute = False
        self._saying: threading.Thread | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self,
        failure: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(_LOG_SECS)

    def status(self) -> dict[str, Any]:
        """What the rank is at, and for how long; ready for JSON."""
        phase = self._group.phase
        return {
            "phase": phase.words,
            "phase_secs": round(self._phase_secs, 1),
            # None of the learners has gone on, nor has any work of its own.
            "still_secs": round(self._still, 1) if phase.awaits else 0.0,
            "silent_learners": self._silent(),
        }

    # --- the watchdog's thread ---

    def _run(self) -> None:
        last = time.monotonic()
        while not self._done.wait(_TICK_SECS):
            now = time.monotonic()
            # A process that was frozen must not think that the others were.
            self._look(min(now - last, 2 * _TICK_SECS))
            last = now

    def _look(self, secs: float) -> None:
        """Takes in what went on in the last ``secs``, and acts on it."""
        group, phase = self._group, self._group.phase
        goes_on = group.marks != self._marks
        self._marks = group.marks
        if goes_on and self._told:
            self._say(logging.INFO, f"learner {group.rank} goes on after {self._phase_secs:.0f} s")
        self._told &= not goes_on
        self._phase_secs = 0.0 if goes_on else self._phase_secs + secs
        self._exchange(phase, secs)
        if goes_on or self._busy():
            self._still = 0.0
        else:
            self._still += secs
        waited = self._phase_secs
        if waited < self._first_tell:
            self._tell_at = self._first_tell
        elif waited >= self._tell_at and phase.bounded:
            self._tell_at, self._told = 2 * waited, True
            self._say(logging.WARNING, self._words(phase))
        still = self._still if phase.awaits else self._phase_secs
        if still >= self._limit(phase) > 0:
            self._end(phase)

    def _exchange(self, phase: Phase, secs: float) -> None:
        """Tells the other ranks what this one is at, and hears what they are at."""
        for rank, other in self._others.items():
            self._others[rank] = other._replace(silent=other.silent + secs)
        if self._mute:
            return
        try:
            self._group.beat(json.dumps([*phase, round(self._phase_secs, 1)]).encode())
            for rank, data in self._group.heard().items():
                *told, phase_secs = json.loads(data)
                self._others[rank] = _Other(Phase(*told), phase_secs, 0.0)
        except Exception as error:  # a link that broke may be told of here first
            self._mute = True
            self._say(logging.WARNING, f"cannot speak to the other learners any more: {error}")

    def _busy(self) -> list[int]:
        """The other ranks that have work of their own."""
        silent = self._silent()
        return [
            rank
            for rank, other in self._others.items()
            if rank not in silent and not other.phase.awaits
        ]

    def _silent(self) -> list[int]:
        return [rank for rank, other in self._others.items() if other.silent >= _SILENT_SECS]

    def _limit(self, phase: Phase) -> float:
        """Seconds after which the rank ends; 0 = never."""
        if not phase.bounded:
            return 0.0
        if not phase.awaits:
            return _OWN_WORK * self._stall_secs
        return min(self._stall_secs, _STOPPING_SECS) if self._should_stop() else self._stall_secs

    def _words(self, phase: Phase) -> str:
        words = f"learner {self._group.rank} has been {phase.words} for {self._phase_secs:.0f} s"
        if not phase.awaits or not self._others:
            return words
        silent, here = self._silent(), []
        for rank, other in self._others.items():
            if rank not in silent:
                here.append(f"learner {rank} is {other.phase.words} ({other.secs:.0f} s)")
        gone = [f"learner {rank} does not answer" for rank in silent]
        return f"{words}: {', '.join(gone + here)}"

    def _end(self, phase: Phase) -> None:
        self._say(
            logging.ERROR,
            f"{self._words(phase)}; it ends with exit code {exit_codes.STALLED} "
            f"(--stall_secs={self._stall_secs:g}). Its threads:\n{_stacks()}",
        )
        self._exit(exit_codes.STALLED)

    def _say(self, level: int, text: str) -> None:
        """Logs, and waits a while for that: what stands still may be the log itself."""
        if self._saying is not None and self._saying.is_alive():
            return
        self._saying = threading.Thread(target=log.log, args=(level, "%s", text), daemon=True)
        self._saying.start()
        self._saying.join(_LOG_SECS)


def _stacks() -> str:
    """Where all threads of this process are."""
    file = os.memfd_create("stacks")
    try:
        faulthandler.dump_traceback(file, all_threads=True)
        size = os.lseek(file, 0, os.SEEK_CUR)
        return os.pread(file, size, 0).decode(errors="replace")
    finally:
        os.close(file)
