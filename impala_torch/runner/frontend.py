"""--runner=frontend: experiments one after the other, each on all workers of a CSV file."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

from impala_torch.flags.errors import UserError
from impala_torch.runner.description import Task

_EXPERIMENT, _FRONTEND = "experiment.py", "run_experiment_mm_raw.py"


def through_frontend(
    tasks: Sequence[Task], run_name: str, workers_csv_path: str = ""
) -> list[Task]:
    """The tasks with the frontend's command in place of experiment.py's.

    Each has a tmux session of its own, and follows its run to the end.

    Raises:
      UserError: a command is of another program, or there are no workers for it.
    """
    if workers_csv_path and not os.path.isfile(workers_csv_path):
        raise UserError(f"--workers_csv_path={workers_csv_path}: there is no such file")
    return [
        dataclasses.replace(task, argv=_argv(task, run_name, workers_csv_path)) for task in tasks
    ]


def _argv(task: Task, run_name: str, workers_csv_path: str) -> list[str]:
    argv = list(task.argv)
    programs = [pathlib.Path(word).name for word in argv]
    if _EXPERIMENT in programs:
        place = programs.index(_EXPERIMENT)
        argv[place] = str(pathlib.Path(argv[place]).with_name(_FRONTEND))
    elif _FRONTEND in programs:
        place = programs.index(_FRONTEND)
    else:
        raise UserError(
            f"--runner=frontend: the command of {task.name} runs neither {_EXPERIMENT} nor "
            f"{_FRONTEND}: {' '.join(task.argv)}"
        )
    ours = {"workers_csv_path": workers_csv_path, "tmux_sess": _session(run_name, task.name)}
    given = {word.lstrip("-").partition("=")[0] for word in argv[place + 1 :]}
    if not workers_csv_path and not given & {"workers_csv_path", "workers_from"}:
        raise UserError("--runner=frontend needs --workers_csv_path: the CSV file of the workers")
    flags = [f"--{name}={value}" for name, value in ours.items() if value and name not in given]
    return [*argv[: place + 1], *flags, "--follow", *argv[place + 1 :]]


def _session(run_name: str, name: str) -> str:
    """A tmux session's name: neither dots nor colons."""
    return re.sub(r"[^\w-]+", "-", f"{run_name}-{name}").lstrip("-")
