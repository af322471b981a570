"""Signals are the process's: what an environment's code does with them is undone."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Handlers are after the block what they were before: else Ctrl-C might mean nothing."""
    if threading.current_thread() is not threading.main_thread():  # there nobody can set any
        yield
        return
    before = {number: signal.getsignal(number) for number in _OURS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
