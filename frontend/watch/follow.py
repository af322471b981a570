"""Shows the learners' progress in the terminal that started a run, until the run has ended."""

import pathlib
import signal
import sys
import time
from typing import TextIO

from frontend.commands import LEARNERS
from frontend.hosts.tmux import Session

_POLL_SECS = 0.5
_TAIL_LINES = 10  # of the log of an actor that failed
ACTORS_END_SECS = 60.0  # how long actors may take to end after their learners


def follow(session: Session, logs: pathlib.Path, start: int, out: TextIO = sys.stdout) -> int:
    """Copies the learners' log to ``out`` until the run has ended; nothing of it is left then.

    The first Ctrl-C (or SIGTERM) stops the run; a second one leaves it to itself.

    Args:
      session: where the run is.
      logs: the directory of the windows' logs.
      start: where in the learners' log this run begins, in bytes.
      out: where to show it.

    Returns:
      The learners' exit code; 130 where the user left.
    """
    # SIGTERM does as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    follower = _Follower(session, logs, start, out)
    stopping = False
    try:
        while True:
            try:
                return follower.run()
            except KeyboardInterrupt:
                if stopping:
                    print(f"left; look at it with: tmux attach -t {session.name}", file=out)
                    return 130
                stopping = True
                print("stopping after a checkpoint; Ctrl-C again only leaves", file=out, flush=True)
                session.press(LEARNERS, "C-c")
    finally:
        signal.signal(signal.SIGTERM, before)


def end_of_log(logs: pathlib.Path) -> int:
    """Where in the learners' log, in bytes, a run that is yet to start will begin."""
    path = logs / f"{LEARNERS}.log"
    return path.stat().st_size if path.exists() else 0


class _Follower:
    def __init__(self, session: Session, logs: pathlib.Path, start: int, out: TextIO) -> None:
        self._session, self._logs, self._out = session, logs, out
        self._position = start
        self._told: set[str] = set()

    def run(self) -> int:
        """Returns the learners' exit code when no command of the run is left."""
        learners_ended = None  # when
        while True:
            # The windows first: what ended had written all of its log.
            windows = {window.name: window.exit_code for window in self._session.windows()}
            self._show_log()
            self._tell_failures(windows)
            failed = windows.get(LEARNERS)
            if LEARNERS not in windows or failed is not None:
                learners_ended = learners_ended or time.monotonic()
                waited = time.monotonic() - learners_ended
                running = [name for name, code in windows.items() if code is None]
                # Failed learners cannot tell their actors to stop.
                if failed or not running or waited > ACTORS_END_SECS:
                    self._session.kill()
                    return failed or 0
            time.sleep(_POLL_SECS)

    def _show_log(self) -> None:
        path = self._logs / f"{LEARNERS}.log"
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self._position)
            # Whole lines only: the last one may still be being written.
            text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._position += len(text)
        self._out.write(text.decode(errors="replace"))
        self._out.flush()

    def _tell_failures(self, windows: dict[str, int | None]) -> None:
        for name, code in windows.items():
            if code is None or name in self._told:
                continue
            self._told.add(name)
            path = self._logs / f"{name}.log"
            print(f"{name} failed with exit code {code}; its log: {path}", file=self._out)
            if name != LEARNERS and path.exists():  # the learners' was shown already
                for line in path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]:
                    print(f"    {line}", file=self._out)
