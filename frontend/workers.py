"""The CSV file of a run's workers -> validated worker sets.

One row is one process: ``job`` (learner or actor), ``ip`` and ``tf_port`` (a learner's parameter
endpoint, an actor's name), ``cuda_visible_devices`` (the GPUs it may see), and how to log in to
its host: ``ssh_port``, ``ssh_username``, ``ssh_password``. The last four may be empty. Blank
lines, and lines that start with #, are skipped.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from impala_torch.config import UserError

COLUMNS = (
    "job",
    "ip",
    "tf_port",
    "cuda_visible_devices",
    "ssh_port",
    "ssh_username",
    "ssh_password",
)
JOBS = ("learner", "actor")
DEFAULT_SSH_PORT = 22


@dataclasses.dataclass(frozen=True)
class Worker:
    """One row: a process of the run."""

    job: str  # "learner" or "actor"
    ip: str  # IPv4 address or host name
    port: int
    cuda_visible_devices: str  # "" leaves the choice to the process
    ssh_port: int
    ssh_username: str
    ssh_password: str = dataclasses.field(repr=False)
    line: int  # of the CSV file, from 1

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"


@dataclasses.dataclass(frozen=True)
class WorkerSet:
    """A learner and the actors that send their unrolls to it."""

    index: int  # the learner's rank
    learner: Worker
    actors: tuple[Worker, ...]  # by task


def read(path: str) -> list[WorkerSet]:
    """Reads a CSV file of workers.

    Raises:
      UserError: the file cannot be read, or a row cannot be a worker of a run.
    """
    return deal(_read_rows(path), path)


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
    if not pathlib.Path(path).exists():
        raise UserError(
            f"the workers' file {path} does not exist: --workers_csv_path names a CSV file such "
            "as sandbox/local_workers_example.csv"
        )
    try:
        # A file that a spreadsheet saved may begin with a byte-order mark.
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(_parse(file, path))
    except OSError as error:
        raise UserError(f"the workers' file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the workers' file {path} is not text: save it as CSV in UTF-8") from error


def _parse(lines: Iterable[str], source: str) -> Iterator[Worker]:
    """Yields the file's workers in order."""
    # Comments become empty lines, so that the reader's line numbers stay the file's.
    rows = csv.reader(
        ("\n" if line.lstrip().startswith("#") else line for line in lines), strict=True
    )
    header: list[str] | None = None
    taken: dict[tuple[str, int], int] = {}
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = _check_header(cells, f"{source} line {rows.line_num}")
                continue
            worker = _worker(header, cells, rows.line_num, source)
            # The two usual names of this machine are one address.
            key = ("127.0.0.1" if worker.ip == "localhost" else worker.ip, worker.port)
            if key in taken:
                raise UserError(
                    f"{source} line {worker.line}: {worker.address} is taken by line "
                    f"{taken[key]} already; give each worker a tf_port of its own"
                )
            taken[key] = worker.line
            yield worker
    except csv.Error as error:
        raise UserError(
            f"{source} line {rows.line_num} is not CSV ({error}): check its quotes"
        ) from error
    if header is None:
        raise UserError(f"{source} is empty: its first line must be {','.join(COLUMNS)}")


def _check_header(names: list[str], where: str) -> list[str]:
    for column in COLUMNS:
        if column not in names:
            raise UserError(
                f"{where}: the column '{column}' is missing; this line must be {','.join(COLUMNS)}"
            )
    for index, name in enumerate(names):
        if name not in COLUMNS or name in names[:index]:
            raise UserError(
                f"{where}: the column '{name}' is unknown or there twice; this line must be "
                f"{','.join(COLUMNS)}"
            )
    return names


def _worker(header: Sequence[str], cells: Sequence[str], line: int, source: str) -> Worker:
    where = f"{source} line {line}"
    if len(cells) > len(header):
        raise UserError(
            f"{where} has {len(cells)} fields instead of {len(header)}: put a field that holds a "
            'comma in quotes, as in "0,1"'
        )
    row = dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
    if row["job"] not in JOBS:
        raise UserError(f"{where}: the job '{row['job']}' is unknown; write learner or actor")
    if not row["ip"]:
        raise UserError(f"{where}: the ip is empty; write an address or host name")
    if set(row["ip"]) & set(" \t,:/@"):
        raise UserError(f"{where}: the ip '{row['ip']}' is no IPv4 address or host name")
    return Worker(
        job=row["job"],
        ip=row["ip"],
        port=_port(row, "tf_port", where),
        cuda_visible_devices=row["cuda_visible_devices"],
        ssh_port=_port(row, "ssh_port", where) if row["ssh_port"] else DEFAULT_SSH_PORT,
        ssh_username=row["ssh_username"],
        ssh_password=row["ssh_password"],
        line=line,
    )


def _port(row: Mapping[str, str], column: str, where: str) -> int:
    text = row[column]
    if text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536:
        return int(text)
    # What stands in the wrong place of an SSH column may be the password: it is not shown.
    shown = f" '{text}'" if column == "tf_port" else ""
    raise UserError(f"{where}: the {column}{shown} is not a port; write a number of 1 to 65535")
