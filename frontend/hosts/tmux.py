"""Runs named commands in the windows of a tmux session on this host; knows nothing of training.

A window whose command fails stays, so that one can read why; a clean end closes it, and with its
last window the session is gone. A session carries the name of its owner, so that nobody ends
another's.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from frontend import scripts
from impala_torch.flags.errors import UserError

if TYPE_CHECKING:
    from libtmux.common import tmux_cmd

# What a new window runs until its options are set. Should the frontend be killed right then, the
# window closes by itself.
_HOLDER = ("sleep", "600")
# Runs a command, and closes its window or tells its exit code.
_IN_WINDOW = str(scripts.HERE / "in_window.sh")
_OWNER = "@impala_run"  # the session's option that names its owner
_TMUX_SECS = 30.0  # that tmux may take to answer
_END_SECS = 5.0  # how long what ran in a killed session may take to end by itself
_UNKNOWN_CODE = 255  # of a window whose shell was killed itself
_SIZE = ("-x", "200", "-y", "50")  # while nobody is attached; wide enough for a line of progress


@dataclasses.dataclass(frozen=True)
class WindowState:
    """A window of a session."""

    name: str
    exit_code: int | None  # None while its command runs
    restarts: int = 0  # how often its command was started again (see scripts/keep_going.sh)
    last_exit: int | None = None  # the exit code before that


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Has Ctrl-C wait for the end of the block."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came.is_set():
        raise KeyboardInterrupt


class Session:
    """A tmux session by its name, whether it exists or not.

    Args:
      name: the session's name.
      socket_name: tmux's ``-L``: another server than the user's own.

    Raises:
      UserError: tmux is not installed, or the name cannot be one.
    """

    def __init__(self, name: str, socket_name: str | None = None) -> None:
        if shutil.which("tmux") is None:
            raise UserError("tmux is not installed: 'apt-get install tmux'")
        if not name or not name.isprintable() or set(name) & set(".:") or name[0] in "=$@%-":
            raise UserError(
                f"'{name}' cannot name a tmux session: use letters, digits, '-' and '_'"
            )
        self.name = name
        self._socket_name = socket_name

    def exists(self) -> bool:
        return self._call("has-session", "-t", f"={self.name}").returncode == 0

    def owner(self) -> str:
        """Who started the session; empty where it is gone or nobody said."""
        shown = self._call("show-options", "-qv", "-t", f"={self.name}:", _OWNER)
        return shown.stdout[0] if shown.returncode == 0 and shown.stdout else ""

    def check_free(self) -> None:
        """Raises UserError where a session of that name exists."""
        if self.exists():
            raise UserError(
                f"a tmux session '{self.name}' exists already: look at it with "
                f"'tmux attach -t {self.name}' (Ctrl-C in a window stops what runs there), end it "
                f"at once with 'tmux kill-session -t {self.name}', or choose another name"
            )

    def start(
        self,
        commands: Sequence[tuple[str, Sequence[str]]],
        cwd: str | pathlib.Path,
        owner: str = "",
    ) -> None:
        """Makes the session and runs each (window's name, argv) in a window of it.

        All windows are there before the first command runs: what ends quickly can neither close
        the session under the others nor be gone before its window was told to stay.

        Raises:
          UserError: a session of that name exists, or tmux cannot run a command; then nothing
            of the session is left.
        """
        self.check_free()
        panes: list[str] = []
        try:
            for name, _ in commands:
                # A session that Ctrl-C left without its owner's name would be nobody's to end.
                with _interrupted_later():
                    panes.append(self._make_window(name, first=not panes))
                    if len(panes) == 1 and owner:
                        self._tmux("set-option", "-t", f"={self.name}:", _OWNER, owner)
            for pane, (_, argv) in zip(panes, commands, strict=True):
                self._run(pane, argv, cwd)
        except BaseException:
            if panes:
                self.kill()
            raise

    def add(
        self, commands: Sequence[tuple[str, Sequence[str]]], cwd: str | pathlib.Path
    ) -> list[str]:
        """Runs those commands whose windows are gone, or whose command has failed.

        Returns:
          The names of the windows that were started.
        """
        started = []
        panes = {name: (pane, state) for pane, name, state, _ in self._panes()}
        for name, argv in commands:
            pane, state = panes.get(name, ("", None))
            if state is not None and state.exit_code is None:
                continue
            self._run(pane or self._make_window(name, first=not self.exists()), argv, cwd)
            started.append(name)
        return started

    def windows(self) -> list[WindowState]:
        """The windows that are left; none where the session is gone."""
        return [state for _, _, state, _ in self._panes()]

    def press(self, window: str, key: str) -> None:
        """Presses a key, such as C-c, in a window; nothing happens where it is gone."""
        self._call("send-keys", "-t", f"={self.name}:={window}", key)

    def kill(self) -> None:
        """Ends the session and all that runs in it; nothing happens where it is gone.

        What does not end with its terminal gets SIGKILL, by the ids of what ran in the session.
        """
        before = tree([pid for _, _, _, pid in self._panes()])
        self._call("kill-session", "-t", f"={self.name}")
        end(before, _END_SECS)

    def kill_windows(self, names: Sequence[str]) -> None:
        """Ends some windows and what runs in them, as ``kill`` does with all."""
        chosen = [(pane, pid) for pane, name, _, pid in self._panes() if name in names]
        before = tree([pid for _, pid in chosen])
        for pane, _ in chosen:
            self._call("kill-pane", "-t", pane)
        end(before, _END_SECS)

    def _panes(self) -> list[tuple[str, str, WindowState, int]]:
        """(pane's id, window's name, state, its shell's process) of each window."""
        fields = ("pane_id", "pane_pid", "pane_dead", "@exit_code", "@restarts", "@last_exit")
        form = ":".join(f"#{{{field}}}" for field in (*fields, "window_name"))
        listing = self._call("list-panes", "-s", "-t", f"={self.name}", "-F", form)
        panes = []
        for line in listing.stdout if listing.returncode == 0 else []:
            pane, pid, dead, code, restarts, last, name = line.split(":", 6)
            ended = int(code) if code else _UNKNOWN_CODE if dead == "1" else None
            state = WindowState(name, ended, int(restarts or 0), int(last) if last else None)
            panes.append((pane, name, state, int(pid)))
        return panes

    def _run(self, pane: str, argv: Sequence[str], cwd: str | pathlib.Path) -> None:
        for option in ("@exit_code", "@restarts", "@last_exit"):
            self._tmux("set-option", "-p", "-u", "-q", "-t", pane, option)
        wrapped = map(_literal, ("bash", _IN_WINDOW, *argv))
        self._tmux("respawn-pane", "-k", "-t", pane, "-c", str(cwd), *wrapped)

    def _make_window(self, name: str, first: bool) -> str:
        """Makes a window that holds its place. Returns its pane's id."""
        if first:
            where = ["new-session", "-d", *_SIZE, "-s", self.name]
        else:
            where = ["new-window", "-d", "-t", f"={self.name}:"]
        pane = self._tmux(*where, "-n", name, "-P", "-F", "#{pane_id}", *_HOLDER)[0]
        self._tmux("set-option", "-w", "-t", pane, "remain-on-exit", "on")
        return pane

    def _tmux(self, *argv: str) -> list[str]:
        """Runs a tmux command. Returns the lines of its output."""
        result = self._call(*argv)
        if result.returncode != 0 or result.stderr:
            raise UserError(
                f"tmux could not do '{argv[0]}' for session '{self.name}': "
                f"{' '.join(result.stderr) or f'exit code {result.returncode}'}"
            )
        return result.stdout

    def _call(self, *argv: str) -> "tmux_cmd":
        """Runs a tmux command; raises UserError where tmux does not answer."""
        import libtmux  # slow to import, and --dry_run needs none of it

        server = libtmux.Server(socket_name=self._socket_name)
        done: list[tmux_cmd] = []
        failed: list[Exception] = []

        def run() -> None:
            try:
                done.append(server.cmd(*argv))
            except Exception as error:  # for who called
                failed.append(error)

        # libtmux waits for ever for a server that is stopped.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(_TMUX_SECS)
        if failed:
            raise failed[0]
        if not done:
            raise UserError(
                f"tmux did not answer '{argv[0]}' within {_TMUX_SECS:.0f} s: its server hangs; "
                "'pgrep -a tmux' shows it"
            )
        return done[0]


def _literal(word: str) -> str:
    """A word as tmux takes it whole: a semicolon at its end would begin another tmux command."""
    return f"{word[:-1]}\\;" if word.endswith(";") else word


def end(processes: dict[int, str], secs: float) -> None:
    """Waits so long for processes to end (see ``tree``), then ends them; frozen ones too."""
    deadline = time.monotonic() + secs
    while left := [pid for pid, start in processes.items() if _started(pid) == start]:
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def tree(roots: Sequence[int]) -> dict[int, str]:
    """The processes below ``roots`` and these, with when each was started: ids come again."""
    found: dict[int, str] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        start = _started(pid)
        if start and pid not in found:
            found[pid] = start
            with contextlib.suppress(OSError):
                for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
    return found


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; empty where it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
