"""Runs many experiments: those of a description file, a Python module that defines RUN_DESCRIPTION.

    python -m impala_torch.runner --run=sandbox/examples/cartpole_seeds.py --max_parallel=2

Each has its directory below train_dir/RUN_NAME, with its command, log and exit state. A second call
leaves out those that have finished, and goes on with the others from their checkpoints. Ctrl-C
stops all of them with a checkpoint. Options are those of Sample Factory's launcher.
"""

import argparse
import dataclasses
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence

from impala_torch.flags.errors import UserError
from impala_torch.runner import frontend, results, slurm, state
from impala_torch.runner.description import RunDescription, Task
from impala_torch.runner.display import Display
from impala_torch.runner.load import load
from impala_torch.runner.processes import Limits, Pool
from impala_torch.runner.state import Status


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the options say.

    Returns:
      The exit code: 0, 1 where an experiment has failed, 2 for bad input, 130 after Ctrl-C.
    """
    args = parser().parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before anything ran here, or while jobs were submitted
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(args: argparse.Namespace) -> int:
    description = load(args.run)
    description.experiment_suffix = args.experiment_suffix
    tasks = description.tasks(args.train_dir)
    if args.runner == "frontend":
        tasks = frontend.through_frontend(tasks, description.run_name, args.workers_csv_path)
    if args.dry_run:
        print("\n".join(_shown(task) for task in tasks))
        return 0
    if args.results:
        results.show(tasks, description.run_name)
        return 0
    rest = [task for task in tasks if args.rerun or not state.is_done(task)]
    with Display(args.quiet, total=len(tasks), done=len(tasks) - len(rest)) as display:
        for task in [task for task in tasks if task not in rest]:
            display.say(f"finished before: {task.name}")
        if args.runner == "slurm":
            return _submit(rest, description, args, display)
        pool = Pool(rest, _limits(args), display)
        signals = pool.run()
    results.show(tasks, description.run_name)
    failed = _tell_unfinished(tasks)
    return 128 + signal.SIGINT if signals else int(failed)


def _limits(args: argparse.Namespace) -> Limits:
    limits = Limits(args.max_parallel, args.pause_between, args.num_gpus, args.experiments_per_gpu)
    if args.runner != "frontend":
        return limits
    # Each has all the workers; their GPUs are the CSV file's.
    return dataclasses.replace(limits, max_parallel=1, experiments_per_gpu=-1)


def _submit(
    tasks: list[Task], description: RunDescription, args: argparse.Namespace, display: Display
) -> int:
    options = slurm.Options(
        gpus_per_job=args.slurm_gpus_per_job,
        cpus_per_gpu=args.slurm_cpus_per_gpu,
        partition=args.slurm_partition,
        workdir=args.slurm_workdir,
        sbatch_template=args.slurm_sbatch_template,
        timeout=args.slurm_timeout,
        print_only=args.slurm_print_only,
        pause_between=args.pause_between,
    )
    failed = [task for task in tasks if state.read(task.directory).status is Status.FAILED]
    for task in failed:
        display.ended(task, state.read(task.directory))
    workdir = description.directory(args.train_dir) / "slurm"
    submitted = slurm.submit(tasks, options, workdir, display)
    if not options.print_only:
        place = options.workdir or os.path.relpath(workdir)
        display.say(
            f"{submitted} job(s) submitted; all are cancelled by {pathlib.Path(place)}/scancel.sh, "
            "and the same command with --results shows how far they are"
        )
    return 0


def _shown(task: Task) -> str:
    variables = [f"{name}=..." for name in task.env]  # their values may be secrets
    return " ".join([*variables, shlex.join(task.command)])


def _tell_unfinished(tasks: Sequence[Task]) -> bool:
    """Names what has not finished. Returns whether anything has failed."""
    statuses = {task.name: state.read(task.directory).status for task in tasks}
    failed = [name for name, status in statuses.items() if status is Status.FAILED]
    others = {Status.NEW, Status.STOPPED, Status.RUNNING}
    left = [name for name, status in statuses.items() if status in others]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if left:
        print(
            f"not finished: {', '.join(left)}; the same command goes on with them", file=sys.stderr
        )
    return bool(failed)


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m impala_torch.runner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--run", required=True, help="the description: mypackage.myruns, or path/to/myruns.py")
    add(
        *("--runner", "--backend"),
        default="processes",
        choices=("processes", "slurm", "frontend"),
        help="side by side on this machine; a batch job each; or one after the other on all "
        "workers of --workers_csv_path (default: processes)",
    )
    add("--train_dir", default="", help="where runs are (default: the description's, ./train_dir)")
    add("--experiment_suffix", default="", help="appended to the experiments' folders")
    add("--pause_between", default=1.0, type=float, help="seconds between two starts (default: 1)")
    add("--rerun", action="store_true", help="start those again too that have finished")
    add("--results", action="store_true", help="only print the table of results so far")
    add("--dry_run", action="store_true", help="only print the commands")
    add("--quiet", action="store_true", help="say only what failed, and the table")
    _add_machine_options(made.add_argument_group("--runner=processes"))
    group = made.add_argument_group("--runner=frontend")
    group.add_argument("--workers_csv_path", default="", help="CSV file of the workers")
    _add_slurm_options(made.add_argument_group("--runner=slurm"))
    return made


def _add_machine_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--max_parallel", default=4, type=int, help="experiments at a time (default: 4)")
    add("--num_gpus", default=1, type=int, help="GPUs to deal out (default: 1)")
    add(
        "--experiments_per_gpu",
        default=-1,
        type=int,
        help="experiments that share a GPU; each sees that one alone. -1: all see all (default)",
    )


def _add_slurm_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--slurm_gpus_per_job", default=1, type=int, help="GPUs of a job, may be 0 (default: 1)")
    add("--slurm_cpus_per_gpu", default=14, type=int, help="CPUs for each of them (default: 14)")
    add("--slurm_partition", default="", help="partition of the jobs")
    add("--slurm_workdir", default="", help="where scripts go (default: the run's, /slurm)")
    add("--slurm_sbatch_template", default="", help="script with $CMD, instead of the default")
    add("--slurm_timeout", default="0", help="after which a job queues again: 90m, 6h; 0 = never")
    add(
        "--slurm_print_only",
        default=False,
        type=_boolean,
        nargs="?",
        const=True,
        help="only print the sbatch commands",
    )


if __name__ == "__main__":
    sys.exit(main())
