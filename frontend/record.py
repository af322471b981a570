"""The record of a run: from which every later action knows what was started.

It lies in the run's directory here (``~/.impala_torch/<run id>/run.json``), and the session's
name leads to it. It holds no password: those are looked up in the CSV, each time they are needed.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import secrets
from typing import Any

from frontend import slurm, workers
from frontend.flags import Options
from frontend.hosts.host import run_dir
from frontend.run_plan import Plan, plan
from frontend.workers import Worker
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError

_SESSIONS = "~/.impala_torch/sessions"


def new_id() -> str:
    """A new run's name: when, and something that no other run has."""
    now = datetime.datetime.now()
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def save(run: Plan) -> None:
    """Writes the record and points the session's name to it.

    Raises:
      UserError: they cannot be written.
    """
    rows = [worker for one in run.sets for worker in (one.learner, *one.actors)]
    content = {
        "run_id": run.run_id,
        "config": dataclasses.asdict(run.config),
        "options": {
            **dataclasses.asdict(run.options),
            "workers_csv_path": os.path.abspath(run.source) if run.source else "",
        },
        "job": None if run.job is None else dataclasses.asdict(run.job),
        "workers": [
            {**dataclasses.asdict(row), "ssh_password": ""}
            for row in sorted(rows, key=lambda row: row.line)
        ],
    }
    pointer = _pointer(run.options.tmux_sess)
    try:
        _write(pathlib.Path(run.record), json.dumps(content, indent=1))
        pointer.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(pointer, run.run_id)
    except OSError as error:
        raise UserError(
            f"the run's record {run.record} cannot be written: {error.strerror}"
        ) from error


def load(path: str) -> Plan:
    """The plan of a record. Raises UserError where it cannot be read."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
        options = Options(**content["options"])
        rows = [Worker(**row) for row in content["workers"]]
        config = Config(**content["config"])
        job = slurm.Allocation(**content["job"]) if content["job"] else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the run's record {path} cannot be read: {error}") from error
    sets = workers.deal(_with_passwords(rows, options.workers_csv_path), path)
    return plan(sets, config, options, content["run_id"], job)


def find(session: str) -> str:
    """The record of the run that was started last in a session of that name; empty if none."""
    try:
        run_id = _pointer(session).read_text()
    except OSError:
        return ""
    path = pathlib.Path(run_dir(run_id)).expanduser() / "run.json"
    return str(path) if path.exists() else ""


def _with_passwords(rows: list[Worker], source: str) -> list[Worker]:
    passwords: dict[Any, str] = {}
    with contextlib.suppress(UserError):
        for worker_set in workers.read(source) if source else []:
            for row in (worker_set.learner, *worker_set.actors):
                passwords[row.ip, row.ssh_port, row.ssh_username] = row.ssh_password
    return [
        dataclasses.replace(
            row, ssh_password=passwords.get((row.ip, row.ssh_port, row.ssh_username), "")
        )
        for row in rows
    ]


def _pointer(session: str) -> pathlib.Path:
    return pathlib.Path(_SESSIONS).expanduser() / session


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, path)
