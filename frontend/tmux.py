"""Runs named commands in the windows of a tmux session on this host; knows nothing of training.

A window whose command fails stays, so that one can read why; a clean end closes it, and with its
last window the session is gone.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from impala_torch.config import UserError

if TYPE_CHECKING:
    import libtmux

# What a new window runs until its options are set. Should the frontend be killed right then, the
# window closes by itself.
_HOLDER = ("sleep", "600")
# Runs a command, closes its window after a clean end, and else leaves its exit code in an option of
# the pane. tmux itself can keep failed windows and tell their status, but where a pane's terminal
# closes before its process is reaped, it takes a failure for a clean end, or never tells.
_RUN = (
    'trap : INT; "$@"; code=$?; '
    'if [ $code -eq 0 ]; then tmux kill-pane -t "$TMUX_PANE"; '
    'else tmux set-option -p -t "$TMUX_PANE" @exit_code $code; fi; exit $code'
)
_UNKNOWN_CODE = 255  # of a window whose shell was killed itself
_SIZE = ("-x", "200", "-y", "50")  # while nobody is attached; wide enough for a line of progress


@dataclasses.dataclass(frozen=True)
class WindowState:
    """A window of a session."""

    name: str
    exit_code: int | None  # None while its command runs


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
        return self._server().has_session(self.name)

    def check_free(self) -> None:
        """Raises UserError where a session of that name exists."""
        if self.exists():
            raise UserError(
                f"a tmux session '{self.name}' exists already: look at it with "
                f"'tmux attach -t {self.name}' (Ctrl-C in a window stops what runs there), end it "
                f"at once with 'tmux kill-session -t {self.name}', or choose another name"
            )

    def start(self, commands: Sequence[tuple[str, Sequence[str]]], cwd: str | pathlib.Path) -> None:
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
                panes.append(self._make_window(name, first=not panes))
            for pane, (_, argv) in zip(panes, commands, strict=True):
                wrapped = map(_literal, ("bash", "-c", _RUN, "window", *argv))
                self._tmux("respawn-pane", "-k", "-t", pane, "-c", str(cwd), *wrapped)
        except BaseException:
            if panes:
                self.kill()
            raise

    def windows(self) -> list[WindowState]:
        """The windows that are left; none where the session is gone."""
        form = "#{pane_dead}:#{@exit_code}:#{window_name}"
        listing = self._server().cmd("list-panes", "-s", "-t", f"={self.name}", "-F", form)
        states = []
        for line in listing.stdout if listing.returncode == 0 else []:
            dead, code, name = line.split(":", 2)
            ended = int(code) if code else _UNKNOWN_CODE if dead == "1" else None
            states.append(WindowState(name, ended))
        return states

    def press(self, window: str, key: str) -> None:
        """Presses a key, such as C-c, in a window; nothing happens where it is gone."""
        self._server().cmd("send-keys", "-t", f"={self.name}:={window}", key)

    def kill(self) -> None:
        """Ends the session and what runs in it; nothing happens where it is gone."""
        self._server().cmd("kill-session", "-t", f"={self.name}")

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
        result = self._server().cmd(*argv)
        if result.returncode != 0 or result.stderr:
            raise UserError(
                f"tmux could not do '{argv[0]}' for session '{self.name}': "
                f"{' '.join(result.stderr) or f'exit code {result.returncode}'}"
            )
        return result.stdout

    def _server(self) -> "libtmux.Server":
        import libtmux  # slow to import, and --dry_run needs none of it

        return libtmux.Server(socket_name=self._socket_name)


def _literal(word: str) -> str:
    """A word as tmux takes it whole: a semicolon at its end would begin another tmux command."""
    return f"{word[:-1]}\\;" if word.endswith(";") else word
