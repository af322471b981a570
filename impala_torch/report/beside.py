"""Work that is done beside the caller, and places to write to that may fail for a while."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Beside:
    """A thread that does what it is given, in its order. Who gives is never kept waiting."""

    def __init__(self, name: str, capacity: int) -> None:
        """
        Args:
          name: of the thread.
          capacity: pieces of work that may wait; further ones are refused.
        """
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(capacity)
        # A daemon: a disk that does not answer must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def give(self, work: Callable[[], None]) -> bool:
        """Has ``work`` done, which raises nothing. Returns False where too much waits already."""
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            return False
        return True

    def flush(self, secs: float) -> bool:
        """Waits up to ``secs`` until what was given is done; whether it is."""
        done = threading.Event()
        deadline = time.monotonic() + secs
        try:
            self._waiting.put(done.set, timeout=secs)
        except queue.Full:
            return False
        return done.wait(max(0.0, deadline - time.monotonic()))

    def close(self, secs: float) -> bool:
        """``flush``, and ends the thread if that is done."""
        done = self.flush(secs)
        if done:
            self._waiting.put(None)
            self._thread.join(secs)
        return done

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            work()


class Sink:
    """Something that is written to. Where that fails it is told once, and tried again with the
    next; when it works again that is told too."""

    def __init__(self, what: str, write: Callable[..., None]) -> None:
        """
        Args:
          what: names it in the log.
          write: raises where it fails.
        """
        self._what, self._write = what, write
        self._lost = 0
        self.trouble = ""  # why the last write failed, in a sentence; empty where it did not

    def __call__(self, *args: Any) -> None:
        """Writes, or tells why not; raises nothing."""
        try:
            self._write(*args)
        except Exception as error:  # of any kind: none is worth a training
            self._lost += 1
            told, self.trouble = self.trouble, f"{self._what} cannot be written: {why(error)}"
            if not told:
                log.error("%s; training goes on, and the next row is tried", self.trouble)
            return
        if self.trouble:
            log.warning("%s is written again; %d row(s) are missing", self._what, self._lost)
            self._lost, self.trouble = 0, ""


def why(error: BaseException) -> str:
    """What an error says, of the disk without the file's name and number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
