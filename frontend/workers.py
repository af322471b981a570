"""The CSV file of a run's workers -> validated worker sets.

One row is one process: ``job`` (learner or actor), ``ip`` and ``tf_port`` (a learner's parameter
endpoint, an actor's name), ``cuda_visible_devices`` (the GPUs it may see), and how to log in to
its host: ``ssh_port``, ``ssh_username``, ``ssh_password``. The last four may be empty, or their
columns not there. More columns may follow: ``ssh_key_path`` (a private key here), ``workdir`` and
``python`` (the project and its interpreter there), ``num_envs``. Blank lines, and lines that start
with #, are skipped.

Everything wrong with a file is told at once, each with its line and column.
"""

import csv
import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

from impala_torch.flags.errors import UserError

COLUMNS = (
    "job",
    "ip",
    "tf_port",
    "cuda_visible_devices",
    "ssh_port",
    "ssh_username",
    "ssh_password",
)
REQUIRED_COLUMNS = COLUMNS[:3]
OPTIONAL_COLUMNS = ("ssh_key_path", "workdir", "python", "num_envs")
JOBS = ("learner", "actor")
DEFAULT_SSH_PORT = 22
_MAX_TOLD = 20  # mistakes of one file


@dataclasses.dataclass(frozen=True)
class Worker:
    """One row: a process of the run."""

    job: str  # "learner" or "actor"
    ip: str  # IPv4 address, host name, or (of an actor) an alias of ~/.ssh/config
    port: int
    cuda_visible_devices: str  # "" leaves the choice to the process
    ssh_port: int  # 0 leaves it to ~/.ssh/config, or 22
    ssh_username: str
    ssh_password: str = dataclasses.field(repr=False)
    line: int  # of the CSV file, from 1
    ssh_key_path: str = ""
    workdir: str = ""  # "" is --remote_workdir
    python: str = ""  # "" is --remote_python
    num_envs: int = 0  # 0 is --num_envs

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"


@dataclasses.dataclass(frozen=True)
class WorkerSet:
    """A learner and the actors that send their unrolls to it."""

    index: int  # the learner's rank
    learner: Worker
    actors: tuple[Worker, ...]  # by task
    socket: str = ""  # ipc:// address of the endpoint, where it serves this machine alone

    @property
    def endpoint(self) -> str:
        """Where the learner's endpoint is, as its actors must know it."""
        return self.socket or self.learner.address


def read(path: str) -> list[WorkerSet]:
    """Reads a CSV file of workers.

    Raises:
      UserError: the file cannot be read, or rows cannot be workers of a run; a line for each
        mistake.
    """
    return deal(_read_rows(path), path)


def privacy_warning(path: str, sets: Sequence[WorkerSet]) -> str:
    """What to say of a file that shows passwords to others; empty if it does not."""
    workers = [worker for one in sets for worker in (one.learner, *one.actors)]
    if not any(worker.ssh_password for worker in workers):
        return ""
    if not os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return ""
    return f"{path} holds passwords and can be read by others: 'chmod 600 {path}'"


def deal(workers: Sequence[Worker], source: str) -> list[WorkerSet]:
    """Deals the actors to the learners round-robin, in the file's order.

    Raises:
      UserError: there is no learner, or a learner would have no actor.
    """
    learners = [worker for worker in workers if worker.job == "learner"]
    actors = [worker for worker in workers if worker.job == "actor"]
    if not learners:
        raise UserError(f"{source} has no learner: add a row whose job is 'learner'")
    if len(actors) < len(learners):
        idle = learners[len(actors)]
        raise UserError(
            f"{source} has {len(learners)} learner(s) and {len(actors)} actor(s), so the learner "
            f"of line {idle.line} would have none: add rows whose job is 'actor', at least one "
            "for each learner"
        )
    return [
        WorkerSet(index, learner, tuple(actors[index :: len(learners)]))
        for index, learner in enumerate(learners)
    ]


def _read_rows(path: str) -> list[Worker]:
    try:
        exists = pathlib.Path(path).exists()
        # A file that a spreadsheet saved may begin with a byte-order mark.
        text = pathlib.Path(path).read_text(encoding="utf-8-sig") if exists else ""
    except OSError as error:
        raise UserError(f"the workers' file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the workers' file {path} is not text: save it as CSV in UTF-8") from error
    except ValueError as error:
        raise UserError(f"--workers_csv_path: {error}") from error
    if not exists:
        raise UserError(
            f"the workers' file {path} does not exist: --workers_csv_path names a CSV file such "
            "as sandbox/local_workers_example.csv"
        )
    reader = _Reader(path)
    workers = reader.read(text)
    if reader.mistakes:
        shown = reader.mistakes[:_MAX_TOLD]
        if more := len(reader.mistakes) - len(shown):
            shown.append(f"{path}: and {more} mistakes more")
        raise UserError("\n".join(shown))
    return workers


class _Reader:
    """Reads the rows of one file and notes every mistake."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._taken: dict[tuple[str, int], int] = {}  # lines by address
        self._logins: dict[tuple[str, int, str], Worker] = {}
        self.mistakes: list[str] = []

    def read(self, text: str) -> list[Worker]:
        header: list[str] | None = None
        workers = []
        for line, cells in self._rows(text):
            if header is None:
                header = self._header(line, cells)
                if header is None:
                    return []
                continue
            before = len(self.mistakes)
            worker = self._worker(header, cells, line)
            self._compare(worker)
            if len(self.mistakes) == before:
                workers.append(worker)
        if header is None and not self.mistakes:
            self.mistakes.append(
                f"{self._source} is empty: its first line must be {','.join(COLUMNS)}"
            )
        return workers

    def _rows(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Yields (line, cells) of the rows that say something."""
        # Comments become empty lines, so that the reader's line numbers stay the file's.
        lines: Iterable[str] = text.splitlines(keepends=False)
        rows = csv.reader(
            ("\n" if line.lstrip().startswith("#") else f"{line}\n" for line in lines), strict=True
        )
        try:
            for row in rows:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield rows.line_num, cells
        except csv.Error as error:
            self._tell(rows.line_num, "", f"is not CSV ({error}): check its quotes")

    def _header(self, line: int, names: list[str]) -> list[str] | None:
        must = f"this line must be {','.join(COLUMNS)}"
        known = (*COLUMNS, *OPTIONAL_COLUMNS)
        before = len(self.mistakes)
        if missing := [f"'{column}'" for column in REQUIRED_COLUMNS if column not in names]:
            self._tell(line, "", f"missing columns: {', '.join(missing)}; {must}")
        for index, name in enumerate(names):
            if name not in known or name in names[:index]:
                self._tell(
                    line,
                    "",
                    f"the column '{name}' is unknown or there twice; {must}, and may go on with "
                    f"{', '.join(OPTIONAL_COLUMNS)}",
                )
        return names if len(self.mistakes) == before else None

    def _worker(self, header: Sequence[str], cells: Sequence[str], line: int) -> Worker:
        if len(cells) > len(header):
            self._tell(
                line,
                "",
                f"there are {len(cells)} fields instead of {len(header)}: put a field that holds "
                'a comma in quotes, as in "0,1"',
            )
        names = (*COLUMNS, *OPTIONAL_COLUMNS)
        row = dict.fromkeys(names, "") | dict(zip(header, cells, strict=False))
        if row["job"] not in JOBS:
            self._tell(line, "job", f"the job '{row['job']}' is unknown; write learner or actor")
        ip = row["ip"]
        if not ip:
            self._tell(line, "ip", "the ip is empty; write an address or host name")
        elif set(ip) & set(" \t,:/@") or ip.startswith("-") or not ip.isprintable():
            self._tell(line, "ip", f"the ip '{ip}' is no IPv4 address or host name")
        for name in ("ssh_username", "ssh_key_path", "workdir", "python", "cuda_visible_devices"):
            if row[name].startswith("-") or not row[name].isprintable():
                self._tell(line, name, f"the {name} begins with '-' or holds control characters")
        return Worker(
            job=row["job"],
            ip=ip,
            port=self._number(row, "tf_port", line, 65535, "a port"),
            cuda_visible_devices=row["cuda_visible_devices"],
            ssh_port=self._number(row, "ssh_port", line, 65535, "a port", empty=0),
            ssh_username=row["ssh_username"],
            ssh_password=row["ssh_password"],
            line=line,
            ssh_key_path=row["ssh_key_path"],
            workdir=row["workdir"],
            python=row["python"],
            num_envs=self._number(row, "num_envs", line, 4096, "a number", empty=0),
        )

    def _number(
        self,
        row: Mapping[str, str],
        column: str,
        line: int,
        high: int,
        what: str,
        empty: int | None = None,
    ) -> int:
        text = row[column]
        if not text and empty is not None:
            return empty
        if text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= high:
            return int(text)
        # What stands in the wrong place of an SSH column may be the password: it is not shown.
        shown = f" '{text}'" if column == "tf_port" else ""
        words = f"the {column}{shown} is not {what}; write a number of 1 to {high}"
        self._tell(line, column, words)
        return 0

    def _compare(self, worker: Worker) -> None:
        """Notes where a row contradicts those before it."""
        # The two usual names of this machine are one address.
        key = ("127.0.0.1" if worker.ip == "localhost" else worker.ip, worker.port)
        if worker.port and worker.ip:
            if key in self._taken:
                self._tell(
                    worker.line,
                    "tf_port",
                    f"{worker.address} is taken by line {self._taken[key]} already; give each "
                    "worker a tf_port of its own",
                )
            self._taken.setdefault(key, worker.line)
        login = (worker.ip, worker.ssh_port, worker.ssh_username)
        first = self._logins.setdefault(login, worker)
        for column in ("ssh_password", "ssh_key_path"):
            if getattr(first, column) != getattr(worker, column):
                self._tell(
                    worker.line,
                    column,
                    f"the {column} differs from that of line {first.line}, which has the same ip, "
                    "ssh_port and ssh_username: one host is logged in to once",
                )

    def _tell(self, line: int, column: str, words: str) -> None:
        where = f"{self._source} line {line}" + (f" column {column}" if column else "")
        self.mistakes.append(f"{where}: {words}")
