"""Processes of this machine: children that never outlive their parent, and asked-for ends."""

import atexit
import contextlib
import ctypes
import logging
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import NoReturn

from impala_torch.flags import exit_codes

log = logging.getLogger(__name__)

_spawned: weakref.WeakSet[subprocess.Popen] = weakref.WeakSet()

_PARENT = "IMPALA_TORCH_PARENT"
_PR_SET_PDEATHSIG = 1
_OWN_FILES = 32  # of a learner, beside a socket an actor
_LAST_BYTES = 1 << 16  # of a log that are looked at
_THREADS_SECS = 3.0  # that threads may take to end
_AGAIN_SECS = 1.0  # after which a Ctrl-C is a second one
_MOST_FILES = 1 << 20  # programs that go through all that may be open, take long beyond


def spawn(
    module: str,
    args: Sequence[str],
    log_path: pathlib.Path,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    """Starts a module of this package as a child, its output appended to ``log_path``.

    The child has its own process group, so that Ctrl-C in a terminal reaches only this process,
    and must call ``end_with_parent`` first thing.
    """
    # -P: else -m would look in the working directory first, where a file of the user's may have
    # the name of a module that is installed.
    argv = [sys.executable, "-P", "-m", module, *args]
    given = {**os.environ, **(env or {})}
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**given, "PYTHONPATH": python_path(given), _PARENT: str(os.getpid())},
        )
    _spawned.add(process)
    return process


def end_group(child: subprocess.Popen) -> None:
    """Ends what a child that ``spawn`` started has left behind, or the child with all of it."""
    if child in _spawned:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def python_path(env: Mapping[str, str] = os.environ) -> str:
    """The PYTHONPATH of ``env``, and first this package's folder: children find it anywhere."""
    root = os.path.dirname(sys.modules["impala_torch"].__path__[0])
    # An empty part would be the working directory.
    return os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))


def end_with_parent() -> None:
    """Has the kernel send this process SIGTERM when the one that spawned it is gone.

    Does nothing in a process that ``spawn`` did not start.
    """
    parent = os.environ.pop(_PARENT, "")
    if not parent:
        return
    end_with(int(parent))


def end_with(parent: int) -> None:
    """Has the kernel send this process SIGTERM when its parent is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before the kernel was asked
        sys.exit("the process that started this one is gone")


def allow_many_files() -> None:
    """Raises the limit of this process's open files to what it may be, for its children too.

    A socket an actor, and the files of a run, are soon more than the usual 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def warn_of_few_files(peers: int) -> None:
    """Says so where a process that serves so many peers may not open as many files as it needs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = peers + _OWN_FILES
    if limit != resource.RLIM_INFINITY and limit < needed:
        log.warning(
            "this process may open %d files, and with %d actor(s) it needs about %d: where they "
            "run out, connections and files fail; raise the hard limit (ulimit -Hn)",
            *(limit, peers, needed),
        )


def last_words(log_path: pathlib.Path) -> str:
    """The end of a child's log, indented, to be told where it died."""
    try:
        with open(log_path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-10:]
    except OSError as error:
        lines = [f"it cannot be read: {error.strerror}"]
    return "\n".join(f"    {line}" for line in lines)


def end(children: Sequence[subprocess.Popen], grace_secs: float) -> None:
    """Waits up to ``grace_secs`` for children to end by themselves, then ends them, and what they
    leave behind."""
    deadline = time.monotonic() + grace_secs
    for send in (None, signal.SIGTERM, signal.SIGKILL):
        for child in children:
            if send is not None and child.poll() is None:
                log.warning("process %d did not end: sending it %s", child.pid, send.name)
                child.send_signal(send)
        for child in children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
        deadline = time.monotonic() + 5.0
    for child in children:
        end_group(child)


def leave(code: int) -> NoReturn:
    """Ends this process, also where threads are left that would keep it: an environment's own."""
    deadline = time.monotonic() + _THREADS_SECS
    left = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.current_thread()
    ]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread for thread in left if thread.is_alive()]
    if not left:
        sys.exit(code)
    names = ", ".join(thread.name for thread in left)
    log.warning("threads that were left behind do not end, and are ended: %s", names)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class StopRequest:
    """Turns signals into a question that a loop asks: ``requested()``.

    They are SIGINT, SIGTERM, SIGHUP, and SIGUSR1: the one that mpirun passes on at once. A second
    SIGINT ends the process on the spot: what stands still asks no questions. It has to come a
    while after whatever came first, since mpirun and a terminal may each tell of one Ctrl-C.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._first = 0.0

    def install(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._handle)
        return self

    def requested(self) -> bool:
        return self._event.is_set()

    def _handle(self, number: int, _: object) -> None:
        # Logging is not safe in a signal's handler; a plain write is. Where it goes may be gone.
        first = not self._event.is_set()
        self._event.set()
        if first:
            self._first = time.monotonic()
            again = " (Ctrl-C again ends at once, without one)" if number == signal.SIGINT else ""
            name = signal.Signals(number).name
            _write(f"{name}: stopping after a checkpoint{again}\n")
        elif number == signal.SIGINT and time.monotonic() - self._first > _AGAIN_SECS:
            _write("SIGINT again: ending at once\n")
            os._exit(exit_codes.INTERRUPTED)


def _write(words: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, words.encode())
