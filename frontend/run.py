"""Starts a run on this machine: workers' CSV and flags -> windows of a tmux session.

What cannot work is told before anything starts: what needs torch to be known, such as whether
there is an agent of that name, by a short process of its own.
"""

import dataclasses
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

from frontend import commands, tmux, workers
from frontend.commands import LEARNERS, Command, Programs
from frontend.workers import Worker, WorkerSet
from impala_torch.config import Config, UserError, default_logdir

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that is ready to start."""

    source: str  # the workers' CSV file
    sets: list[WorkerSet]
    config: Config  # every path in it is absolute
    commands: list[Command]
    preflight: list[str]  # the command that checks what needs torch

    @property
    def logs(self) -> pathlib.Path:
        """Where the windows' output is kept, and the commands that they run."""
        return pathlib.Path(self.config.logdir) / "workers"


def plan(workers_csv_path: str, config: Config) -> Plan:
    """Works out what a run would start; touches nothing.

    Raises:
      UserError: the CSV file cannot be a run's, or names another machine.
    """
    sets = workers.read(workers_csv_path)
    for worker_set in sets:
        for worker in (worker_set.learner, *worker_set.actors):
            _check_is_here(worker, workers_csv_path)
    # Workers run in the project's directory, and all of them share the run's.
    config = config.replace(
        logdir=os.path.abspath(config.logdir or default_logdir(config.level_name)),
        key_file=os.path.abspath(config.key_file) if config.key_file else "",
    )
    programs = Programs(
        python=sys.executable,
        experiment=str(ROOT / "experiment.py"),
        mpirun=shutil.which("mpirun") or "mpirun",
        mpirun_wrapper=str(ROOT / "frontend" / "mpirun.py"),
        as_root=os.geteuid() == 0,
    )
    return Plan(
        workers_csv_path,
        sets,
        config,
        commands.plan(sets, config, programs),
        commands.preflight(config, programs),
    )


def describe(run: Plan) -> str:
    """All commands of a run, ready for a shell: what --dry_run prints."""
    addresses = {LEARNERS: ", ".join(worker_set.learner.address for worker_set in run.sets)}
    for worker_set in run.sets:
        for task, actor in enumerate(worker_set.actors):
            addresses[commands.actor_name(worker_set.index, task)] = actor.address
    return "\n".join(
        f"# {command.name} ({addresses[command.name]})\n{shlex.join(command.argv)}"
        for command in run.commands
    )


def start(run: Plan, session: tmux.Session) -> None:
    """Starts a run in a tmux session.

    Raises:
      UserError: the session exists, a program is missing, a learner's port is taken, the agent,
        the level or the checkpoint does not fit, the run's directory cannot be written to, or
        tmux cannot run a command; then nothing runs.
    """
    session.check_free()
    if len(run.sets) > 1 and shutil.which("mpirun") is None:
        raise UserError(
            "several learners need mpirun, which is not installed: 'docker/setup.sh train' does "
            "that; one learner needs none"
        )
    for worker_set in run.sets:
        _check_port_is_free(worker_set.learner, run.source)
    _check_agent_and_level(run)
    scripts = _write_scripts(run)
    windows = [
        (command.name, ("bash", str(script)))
        for command, script in zip(run.commands, scripts, strict=True)
    ]
    session.start(windows, cwd=ROOT)


def summary(run: Plan, session_name: str) -> str:
    """What was started, where its files are, how to look at it and how to stop it."""
    rows = [("job", "set", "task", "ip:port", "window")]
    for worker_set in run.sets:
        index = worker_set.index
        rows.append(("learner", str(index), str(index), worker_set.learner.address, LEARNERS))
        for task, worker in enumerate(worker_set.actors):
            name = commands.actor_name(index, task)
            rows.append(("actor", str(index), str(task), worker.address, name))
    return "\n".join(
        [
            f"Started in tmux session '{session_name}':",
            *_table(rows),
            f"logdir: {run.config.logdir}",
            f"attach: tmux attach -t {session_name}   (Ctrl-b n: next window, Ctrl-b d: leave)",
            f"stop:   tmux send-keys -t {session_name}:{LEARNERS} C-c   "
            "(the learners write a checkpoint, then the actors end too)",
        ]
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _write_scripts(run: Plan) -> list[pathlib.Path]:
    """Writes each command to a file of the run: a window's command must fit a message of tmux's.

    It also tells later how the run was started.
    """
    paths = []
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        for command in run.commands:
            path = run.logs / f"{command.name}.sh"
            path.write_text(f"exec {shlex.join(command.argv)}\n")
            paths.append(path)
    except OSError as error:
        raise UserError(
            f"--logdir={run.config.logdir} cannot be written to: {error.strerror}"
        ) from error
    return paths


def _check_agent_and_level(run: Plan) -> None:
    result = subprocess.run(run.preflight, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["the check of agent and level failed"])[-1]
        raise UserError(last.removeprefix("error: "))


def _check_is_here(worker: Worker, source: str) -> None:
    """Raises UserError where a worker's ip is not an address of this machine."""
    where = f"{source} line {worker.line}: the ip '{worker.ip}'"
    if not all(_is_own(address) for address in _resolve(worker.ip, where)):
        raise UserError(
            f"{where} is not this machine's, and this version starts workers on this machine "
            "only: write localhost"
        )


def _is_own(address: str) -> bool:
    # Only an own address can be bound to; no packet is sent.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return address != "0.0.0.0"  # that is all of them, and none to connect to


def _check_port_is_free(worker: Worker, source: str) -> None:
    """Raises UserError where something listens at a learner's address already."""
    where = f"{source} line {worker.line}"
    for address in _resolve(worker.ip, f"{where}: the ip '{worker.ip}'"):
        with socket.socket() as probe:
            # What has just ended may leave its connections waiting; they are in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, worker.port))
            except OSError as error:
                raise UserError(
                    f"{where}: the learner cannot have {worker.address} ({error.strerror}): "
                    "choose another tf_port or end what uses it"
                ) from error


def _resolve(host: str, where: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"{where} is no known host: write an address or host name") from error
    return sorted({str(entry[4][0]) for entry in found})
