"""What the frontend has done on a host: windows, files and facts, asked for in JSON.

    python -m frontend.hosts.host   reads a request from standard input, answers on standard output

The frontend runs it over SSH on other hosts, in the project's folder there, and calls ``handle``
itself for this one. What is sent arrives on standard input, never on a command line: it may hold
the run's keys. Needs nothing but libtmux.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from frontend.hosts import facts
from frontend.hosts.tmux import Session
from impala_torch.flags.errors import UserError

# Shells may print greetings before a command's output: an answer is what follows this.
REPLY = "IMPALA_TORCH_REPLY "
_HOME = "~/.impala_torch"  # of what runs leave on their hosts until they end
_TAIL_LINES, _TAIL_BYTES = 10, 1 << 16
_NEW_AND_OWN = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_KEEP_SECS = 30 * 86400.0  # of logs on hosts after their run
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")  # see record.new_id


def run_dir(run_id: str) -> str:
    """A run's directory on each of its hosts: keys, sockets, and the logs of remote actors."""
    return f"{_HOME}/{run_id}"


def handle(request: Mapping[str, Any]) -> dict[str, Any]:
    """Does what ``request["op"]`` names.

    Raises:
      UserError: it cannot be done; the message says why.
    """
    operations = {
        "start": _start,
        "windows": _windows,
        "end": _end,
        "log": _log,
        "put": _put,
        "facts": lambda request: facts.gather(request),
        "listen": lambda request: facts.listen(request),
        "measure": lambda request: facts.measure(request),
    }
    try:
        return operations[request["op"]](request)
    except OSError as error:
        raise UserError(f"{request['op']}: {error}") from error


def _start(request: Mapping[str, Any]) -> dict[str, Any]:
    """Writes files and runs commands in windows of the run's session; what runs is left alone.

    The request has session, run_id, files ({name: content}, kept in the run's directory, for the
    owner only), cwd, and windows ([[name, argv], ...]); and if wanted hung: names of windows whose
    command runs in vain, and is ended first. Answers which windows were started.
    """
    session = Session(request["session"])
    run_id = request["run_id"]
    owner = session.owner() if session.exists() else run_id
    if owner != run_id:
        whose = f"run {owner}" if owner else "another program"
        raise UserError(
            f"a tmux session '{session.name}' of {whose} exists there: end it (--action=stop from "
            "where it was started), or give another --tmux_sess"
        )
    _put(request)
    windows = []
    with _run_dir(run_id) as directory:
        for name, argv in request["windows"]:
            # A window's command must fit a message of tmux's; the file also tells how it was
            # started.
            script = directory / f"{name}.sh"
            script.write_text(f"exec {shlex.join(argv)}\n")
            windows.append((name, ["bash", str(script)]))
    if hung := request.get("hung"):
        session.kill_windows(hung)
    cwd = os.path.abspath(os.path.expanduser(request["cwd"]))
    if session.exists():
        return {"started": session.add(windows, cwd)}
    session.start(windows, cwd, owner=run_id)
    return {"started": [name for name, _ in windows]}


def _put(request: Mapping[str, Any]) -> dict[str, Any]:
    """Writes files of the run, for the owner only."""
    with _run_dir(request["run_id"]) as directory:
        for name, content in request.get("files", {}).items():
            path = directory / name
            temporary = path.with_name(f".{name}.{os.getpid()}")
            try:
                with open(os.open(temporary, _NEW_AND_OWN, 0o600), "w") as file:
                    file.write(content)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return {"directory": str(directory)}


def _windows(request: Mapping[str, Any]) -> dict[str, Any]:
    """The windows of the run's session, with the end of the log of each that has failed.

    The request has session, run_id and logs, the directory of the windows' logs.
    """
    session = Session(request["session"])
    if not session.exists() or session.owner() != request["run_id"]:
        return {"windows": []}
    windows = []
    for state in session.windows():
        log = pathlib.Path(os.path.expanduser(request["logs"])) / f"{state.name}.log"
        failed = state.exit_code is not None or state.last_exit is not None
        windows.append(
            {
                "name": state.name,
                "exit_code": state.exit_code,
                "last_exit": state.last_exit,
                "restarts": state.restarts,
                "tail": _tail(log) if failed else [],
            }
        )
    return {"windows": windows}


def _end(request: Mapping[str, Any]) -> dict[str, Any]:
    """Ends what is left of the run here, and only that.

    The request has session and run_id, and keep: whether the run's directory, where the logs
    are, stays. Keys never do.
    """
    session = Session(request["session"])
    ended = []
    if session.exists() and session.owner() == request["run_id"]:
        ended = [state.name for state in session.windows() if state.exit_code is None]
        session.kill()
    directory = pathlib.Path(os.path.expanduser(run_dir(request["run_id"])))
    for path in [*directory.glob("*.key"), *directory.glob("relay/*")]:
        path.unlink(missing_ok=True)
    if not request.get("keep"):
        shutil.rmtree(directory, ignore_errors=True)
    return {"ended": ended}


def _log(request: Mapping[str, Any]) -> dict[str, Any]:
    """Text of a log from ``offset`` (bytes), or its last ``lines``; and where it ends."""
    path = pathlib.Path(os.path.expanduser(request["path"]))
    if not path.exists():
        return {"text": "", "offset": 0, "missing": True}
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        offset = min(request.get("offset") or 0, size)
        if request.get("offset") is None:
            offset = max(0, size - 1_000_000)
        file.seek(offset)
        text = file.read(1_000_000).decode(errors="replace")
    if request.get("offset") is None:
        text = "".join(text.splitlines(keepends=True)[-request["lines"] :])
        return {"text": text, "offset": size}
    return {"text": text, "offset": offset + len(text.encode())}


def _tail(path: pathlib.Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return []


@contextlib.contextmanager
def _run_dir(run_id: str) -> Iterator[pathlib.Path]:
    """The run's directory, to write to. Raises UserError, which names it, where that fails."""
    directory = pathlib.Path(os.path.expanduser(run_dir(run_id)))
    try:
        directory.parent.mkdir(mode=0o700, exist_ok=True)
        if not directory.exists():
            directory.mkdir(mode=0o700)
            _forget_old_runs(directory.parent)
        yield directory
    except OSError as error:
        raise UserError(f"{directory} cannot be written to: {error.strerror}") from error


def _forget_old_runs(folder: pathlib.Path) -> None:
    """Removes what runs left that nobody has touched for long."""
    for path in folder.iterdir():
        old = time.time() - path.stat().st_mtime > _KEEP_SECS
        if old and path.is_dir() and _RUN_ID.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    request = json.load(sys.stdin)
    try:
        reply = {"ok": True, **handle(request)}
    except UserError as error:
        reply = {"ok": False, "reason": str(error)}
    reply["time"] = time.time()
    print(REPLY + json.dumps(reply), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
