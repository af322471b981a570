"""--runner=slurm: a batch job for each experiment, with Sample Factory's flags.

Jobs are submitted, and go on when the runner has returned. A second call submits those that have
not finished and are in the queue no more.
"""

import dataclasses
import os
import pathlib
import shlex
import string
import subprocess
import sys
import time
from collections.abc import Sequence

from impala_torch.flags.errors import UserError
from impala_torch.machine.processes import python_path
from impala_torch.runner import state
from impala_torch.runner.description import Task
from impala_torch.runner.display import Display
from impala_torch.runner.state import Status

_TIMEOUT_SECS = 60.0
_JOB_FILE = "slurm_job.txt"  # the number of an experiment's newest job
# Out of time, a job stops with a checkpoint and puts itself into the queue again.
_RESUBMIT = """\
timeout $TIMEOUT $CMD
if [ $$? -eq 124 ]; then $SBATCH >$JOBFILE; fi
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """The --slurm_... flags."""

    gpus_per_job: int
    cpus_per_gpu: int
    partition: str
    workdir: str
    sbatch_template: str
    timeout: str  # as of timeout(1): 90m, 6h; 0 is none
    print_only: bool
    pause_between: float

    @property
    def cpus(self) -> int:
        """Of a job; without GPUs what one GPU would have had."""
        return self.cpus_per_gpu * max(1, self.gpus_per_job)

    def check(self) -> None:
        """Raises UserError for values that cannot be."""
        if self.gpus_per_job < 0:
            raise UserError(
                f"--slurm_gpus_per_job must not be negative, and is {self.gpus_per_job}"
            )
        if self.cpus_per_gpu < 1:
            raise UserError(f"--slurm_cpus_per_gpu must be at least 1, not {self.cpus_per_gpu}")
        if self.sbatch_template and not os.path.isfile(self.sbatch_template):
            raise UserError(
                f"--slurm_sbatch_template={self.sbatch_template}: there is no such file"
            )


def submit(tasks: Sequence[Task], options: Options, workdir: pathlib.Path, display: Display) -> int:
    """Submits a job for each task that has none in the queue.

    Args:
      tasks: those that have not finished.
      options: the flags.
      workdir: where scripts and scancel.sh go, unless --slurm_workdir says.
      display: who is told.

    Returns:
      How many were submitted, or with --slurm_print_only would have been.

    Raises:
      UserError: sbatch is not here, or refuses a job.
    """
    options.check()
    workdir = pathlib.Path(options.workdir or workdir).absolute()
    queued = set() if options.print_only else _queued_jobs()
    waiting = [task for task in tasks if _job_of(task) not in queued]
    for task in [task for task in tasks if task not in waiting]:
        display.say(f"in the queue as job {_job_of(task)}: {task.name}")
    if not options.print_only:
        _make_folder(workdir)
    for number, task in enumerate(waiting):
        script = workdir / f"sbatch_{task.directory.parent.name}_{task.name}.sh"
        argv = sbatch_argv(task, script, options)
        if options.print_only:
            print(shlex.join(argv))
            continue
        if number:
            time.sleep(options.pause_between)
        state.prepare(task, task.command, Status.QUEUED)
        script.write_text(script_of(task, script, options))
        job = _ask(argv, env={**os.environ, **task.env}).strip().partition(";")[0]
        (task.directory / _JOB_FILE).write_text(job + "\n")
        display.say(f"job {job}: {task.name}")
    if not options.print_only:
        _write_scancel(tasks, workdir)
    return len(waiting)


def sbatch_argv(task: Task, script: pathlib.Path, options: Options) -> list[str]:
    """The command that submits a task's job."""
    argv = ["sbatch", "--parsable", f"--job-name={task.name}", f"--cpus-per-task={options.cpus}"]
    argv += [f"--partition={options.partition}"] if options.partition else []
    argv += [f"--gres=gpu:{options.gpus_per_job}"] if options.gpus_per_job else []
    return [*argv, f"--output={task.directory / state.LOG}", "--open-mode=append", str(script)]


def script_of(task: Task, script: pathlib.Path, options: Options) -> str:
    """The batch script: the template with its $NAMES filled in; $CMD at its end if it has none.

    Raises:
      UserError: the template has a $NAME that is unknown.
    """
    job = [sys.executable, "-m", "impala_torch.runner.job", str(task.directory)]
    timed = options.timeout not in ("", "0")
    text = f"#!/bin/bash\ncd {shlex.quote(os.getcwd())} || exit\n"
    if options.sbatch_template:
        text = pathlib.Path(options.sbatch_template).read_text()
    elif timed:
        text += _RESUBMIT
    template = string.Template(text)
    if "CMD" not in template.get_identifiers():
        template = string.Template(f"{text.rstrip()}\n{_RESUBMIT if timed else '$CMD'}\n")
    try:
        return template.substitute(
            CMD=f"env PYTHONPATH={shlex.quote(python_path())} {shlex.join(job)}",
            SBATCH=shlex.join(sbatch_argv(task, script, options)),
            JOBFILE=shlex.quote(str(task.directory / _JOB_FILE)),
            FILENAME=shlex.quote(str(script)),
            PARTITION=f"-p {options.partition} " if options.partition else "",
            GPU=options.gpus_per_job,
            CPU=options.cpus,
            TIMEOUT=shlex.quote(options.timeout),
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"--slurm_sbatch_template={options.sbatch_template}: {error} is none of $CMD, $SBATCH, "
            "$JOBFILE, $FILENAME, $PARTITION, $GPU, $CPU and $TIMEOUT; a dollar of the script's "
            "own is $$"
        ) from error


def _job_of(task: Task) -> str:
    """The number of the task's newest job; empty if it never had one."""
    path = task.directory / _JOB_FILE
    return path.read_text().strip() if path.exists() else ""


def _queued_jobs() -> set[str]:
    """All jobs that wait or run."""
    return set(_ask(["squeue", "--noheader", "--format=%A"]).split())


def _write_scancel(tasks: Sequence[Task], workdir: pathlib.Path) -> None:
    jobs = [job for task in tasks if (job := _job_of(task))]
    path = workdir / "scancel.sh"
    path.write_text(f"#!/bin/sh\nscancel {' '.join(jobs)}\n")
    path.chmod(0o755)


def _make_folder(path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--slurm_workdir={path} cannot be made: {error.strerror}") from error


def _ask(argv: Sequence[str], env: dict[str, str] | None = None) -> str:
    """What a command of Slurm prints. Raises UserError where it fails."""
    try:
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=_TIMEOUT_SECS, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            f"--runner=slurm: {argv[0]} is not here: Slurm's commands must be on this host's PATH"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"--runner=slurm: {argv[0]} does not answer") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"--runner=slurm: '{shlex.join(argv)}' failed: {said}")
    return done.stdout
