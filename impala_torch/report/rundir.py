"""The directory of a run: where it is, that it can be written to, that no other run has it, and
what it says of itself."""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import IO

from impala_torch.flags.config import Config, default_logdir, to_dict
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.report import provenance, wandb_log
from impala_torch.report.beside import why

log = logging.getLogger(__name__)

LOCK = "run.lock"
_LOCK_SECS = 15.0  # that a run before this one may take to end, as when it is started again
_held: dict[pathlib.Path, IO[str]] = {}  # locks of this process, until it ends

_GIT_SECS = 20.0  # that git may take to say what the program is


def prepare(config: Config) -> pathlib.Path:
    """Makes the run's directory, with ``config.json``; ``logs/latest`` points to it if it is one
    of ``logs``. It is this process's until it ends, however it does: no other run may have it.

    Raises:
      UserError: it cannot be made or written to, another run has it, or --with_wandb cannot be
        had.
    """
    wandb_log.check(config)
    try:
        logdir = _made(config)
        _lock(logdir)
        checkpoint.clear_unfinished(logdir)
    except OSError as error:
        named = config.logdir or default_logdir(config.level_name)
        raise UserError(f"--logdir={named} cannot be written to: {error.strerror}") from error
    description = {
        "flags": dict(to_dict(config)),
        "versions": provenance.versions(),
        "git_commit": _git_commit(),
        "host": socket.gethostname(),
        "hardware": provenance.hardware(),
    }
    try:
        (logdir / "workers").mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(
            logdir / "config.json", json.dumps(description, indent=2).encode()
        )
        if logdir.parent.parent.name == "logs":
            _point_latest(logdir)
    except OSError as error:
        raise UserError(f"--logdir={logdir} cannot be written to: {error.strerror}") from error
    return logdir


def _made(config: Config) -> pathlib.Path:
    """The run's directory: that of --logdir, or a new one of its own."""
    if config.logdir:
        logdir = pathlib.Path(config.logdir).absolute()
        _check_directory(logdir)
        logdir.mkdir(parents=True, exist_ok=True)
        return logdir
    first = pathlib.Path(default_logdir(config.level_name)).absolute()
    first.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        logdir = first if number == 1 else first.with_name(f"{first.name}-{number}")
        with contextlib.suppress(FileExistsError):  # another run began in this second
            logdir.mkdir()
            break
    return logdir


def check_free(logdir: pathlib.Path) -> None:
    """Raises UserError where another run has the directory, which need not exist."""
    _check_directory(logdir)
    path = logdir.resolve() / LOCK
    if path in _held:
        return
    try:
        # To be written to: over NFS a lock is only for who may write.
        file = open(path, "r+")  # noqa: SIM115 (what fails is the opening)
    except OSError:  # there is none, or a start would fail for other reasons
        return
    with file:
        if not _try_lock(file):
            raise UserError(_in_use(logdir, file))


def _check_directory(logdir: pathlib.Path) -> None:
    if logdir.exists() and not logdir.is_dir():
        raise UserError(f"--logdir={logdir} is a file, and a run needs a directory")


def _lock(logdir: pathlib.Path) -> None:
    """Keeps other runs out, as long as this process lives.

    Raises:
      UserError: another run has the directory, and does not end for a while.
    """
    path = logdir.resolve() / LOCK
    if path in _held:
        return
    file = open(path, "a+")  # noqa: SIM115 (open as long as the process lives)
    begun, told = time.monotonic(), False
    while not _try_lock(file):
        waited = time.monotonic() - begun
        if waited > _LOCK_SECS:
            words = _in_use(logdir, file)
            file.close()
            raise UserError(words)
        if waited > 1.0 and not told:
            told = True
            log.info("%s is in use by %s: waiting for it to end", logdir, _holder(file))
        time.sleep(0.1)
    _held[path] = file
    with contextlib.suppress(OSError):  # a full disk: it is locked all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()


def _try_lock(file: IO[str]) -> bool:
    """Whether it is locked now, or cannot be where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s cannot be locked against other runs: %s", file.name, error.strerror)
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"


def _in_use(logdir: pathlib.Path, file: IO[str]) -> str:
    return (
        f"--logdir={logdir} is in use by {_holder(file)}: a run is training there. Stop it, or "
        "give another --logdir"
    )


def _git_commit() -> str:
    """Of this program's checkout, with a + where files were changed; empty if it is none."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]

    def ask(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([*git, *words], capture_output=True, text=True, timeout=_GIT_SECS)

    try:
        commit, changed = ask("rev-parse", "HEAD"), ask("status", "--porcelain")
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    if commit.returncode:
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def log_to(path: pathlib.Path) -> None:
    """Sends this process's log to ``path`` too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path)
    root = logging.getLogger()
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


class _LogFile(logging.FileHandler):
    """Where lines cannot be written, as on a full disk, that is said once on the screen."""

    _failed = _told = False  # this line; and those before it, which was said

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        self._failed = True
        if not self._told and error is not None:
            with contextlib.suppress(OSError):
                print(f"{self.baseFilename} cannot be written: {why(error)}", file=sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        self._told = self._failed


def _point_latest(logdir: pathlib.Path) -> None:
    latest = logdir.parent.parent / "latest"
    temporary = latest.with_name(f".latest.{os.getpid()}")
    temporary.symlink_to(logdir.relative_to(latest.parent))
    os.replace(temporary, latest)
