"""What an experiment's directory says of it: ``command.txt``, ``output.log`` and ``state.json``."""

import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import pathlib
import shlex
from collections.abc import Iterator, Sequence
from typing import IO

from impala_torch.flags.errors import UserError
from impala_torch.runner.description import Task

_STATE, _LOCK = "state.json", "state.lock"
LOG = "output.log"
_TAIL_LINES = 10


class Status(enum.StrEnum):
    NEW = "new"  # never started
    QUEUED = "queued"  # handed to Slurm
    RUNNING = "running"  # or broken off without a word, where nobody holds its lock
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"  # asked to, before its end


@dataclasses.dataclass(frozen=True)
class State:
    """An experiment's last start."""

    status: Status = Status.NEW
    argv: Sequence[str] = ()  # without where its results go
    command: Sequence[str] = ()  # what was run
    env_names: Sequence[str] = ()  # variables it was given; their values may be secrets
    exit_code: int | None = None  # negative: ended by that signal
    started: str = ""  # date and time, ISO 8601 with the zone
    ended: str = ""
    secs: float = 0.0  # that the last start ran
    starts: int = 0
    slurm_job: str = ""


def read(directory: pathlib.Path) -> State:
    """Raises UserError where the file is there and makes no sense."""
    path = directory / _STATE
    try:
        content = json.loads(path.read_text())
        return State(**{**content, "status": Status(content["status"])})
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove it to run this experiment again"
        ) from error


def write(directory: pathlib.Path, state: State) -> None:
    """Whole or not at all."""
    temporary = directory / f".{_STATE}.{os.getpid()}"
    temporary.write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n")
    os.replace(temporary, directory / _STATE)


def prepare(task: Task, command: Sequence[str], status: Status = Status.NEW) -> None:
    """Makes an experiment's directory, which then says what ``command`` is to run in it.

    Raises:
      UserError: it cannot be made or written to.
    """
    try:
        task.directory.mkdir(parents=True, exist_ok=True)
        before = read(task.directory)
        (task.directory / "command.txt").write_text(shlex.join(command) + "\n")
        write(
            task.directory,
            State(
                status=status,
                argv=list(task.argv),
                command=list(command),
                env_names=sorted(task.env),
                starts=before.starts,
            ),
        )
    except OSError as error:
        raise UserError(f"{task.directory} cannot be written to: {error.strerror}") from error


def is_done(task: Task) -> bool:
    """Whether it has finished, and with the command that it has now."""
    state = read(task.directory)
    return state.status is Status.FINISHED and list(state.argv) == list(task.argv)


@contextlib.contextmanager
def lock(directory: pathlib.Path) -> Iterator[bool]:
    """Keeps other runners away from an experiment; yields whether it was free."""
    with open(directory / _LOCK, "a") as file:
        yield _try_lock(file)


def is_running(directory: pathlib.Path) -> bool:
    """Whether somebody on any host runs it now."""
    if not (directory / _LOCK).exists():
        return False
    with lock(directory) as free:
        return not free


def tail(directory: pathlib.Path) -> list[str]:
    """The last lines of an experiment's output."""
    path = directory / LOG
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        return file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
