"""Worker sets and flags -> command lines, as pure functions: what --dry_run prints.

All learners of a run are ranks of one ``mpirun``, an application context each; one learner alone
needs neither MPI nor Horovod and is started plainly. Every actor is a command of its own.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from frontend.workers import Worker, WorkerSet
from impala_torch.config import Config, to_argv

LEARNERS = "learners"  # the name of the learners' command, window and log

# Shows what the command prints, keeps it, and has the command's own exit code. tee must outlive
# Ctrl-C, to pass on what the command says while it ends.
_KEEP_LOG = 'set -o pipefail; mkdir -p "${1%/*}"; "${@:2}" 2>&1 | tee -i -a "$1"'


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a run, for one window."""

    name: str
    argv: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the commands run, by absolute path: a window's PATH need not be this process's."""

    python: str
    experiment: str  # experiment.py
    mpirun: str
    mpirun_wrapper: str  # frontend/mpirun.py
    as_root: bool = False  # Open MPI asks root to say that it means it


def plan(sets: Sequence[WorkerSet], config: Config, programs: Programs) -> list[Command]:
    """All commands of a run: the learners', then one for each actor.

    Args:
      sets: the worker sets, by the learners' rank.
      config: the training flags; ``logdir`` is absolute.
      programs: what to run.
    """
    logs = pathlib.Path(config.logdir) / "workers"
    named = [(LEARNERS, learners(sets, config, programs))]
    for worker_set in sets:
        for task in range(len(worker_set.actors)):
            name = actor_name(worker_set.index, task)
            named.append((name, actor(worker_set, task, config, programs)))
    return [Command(name, tuple(keep_log(argv, logs / f"{name}.log"))) for name, argv in named]


def actor_name(index: int, task: int) -> str:
    """Name of an actor's command, window and log."""
    return f"actor-{index}-{task}"


def learners(sets: Sequence[WorkerSet], config: Config, programs: Programs) -> list[str]:
    """The command of all learners; a learner's --task is its rank."""
    if len(sets) == 1:
        return _learner(sets[0], config, programs)
    argv = [programs.python, programs.mpirun_wrapper, programs.mpirun]
    if programs.as_root:
        argv.append("--allow-run-as-root")
    # Ranks share their cores with actors: never pinned to one, and yielding while they wait.
    argv += ["-bind-to", "none", "-map-by", "slot"]
    argv += ["--mca", "mpi_yield_when_idle", "1"]
    # Where ranks may not read each other's memory (in most containers) the default complains.
    argv += ["--mca", "btl_vader_single_copy_mechanism", "none"]
    # When a rank fails, the others get SIGTERM after so many seconds, and SIGKILL after as many
    # more. Stopping on purpose does not wait for it: see frontend/mpirun.py.
    argv += ["--mca", "odls_base_sigkill_timeout", "5"]
    for worker_set in sets:
        if worker_set.index > 0:
            argv.append(":")
        # The number is of the host's slots, and the same in every context.
        argv += ["-np", "1", "-H", f"localhost:{len(sets)}"]
        argv += _learner(worker_set, config, programs)
    return argv


def preflight(config: Config, programs: Programs) -> list[str]:
    """The command that checks agent, level and checkpoint, before anything is started."""
    return [programs.python, "-m", "impala_torch.preflight", *to_argv(config)]


def actor(worker_set: WorkerSet, task: int, config: Config, programs: Programs) -> list[str]:
    """The command of one actor; its --task is its place among its learner's actors."""
    return _experiment(worker_set, worker_set.actors[task], task, config, programs)


def keep_log(argv: Sequence[str], path: pathlib.Path) -> list[str]:
    """The command with its output shown and appended to ``path``; the exit code stays its own."""
    return ["bash", "-c", _KEEP_LOG, "worker", str(path), *argv]


def _learner(worker_set: WorkerSet, config: Config, programs: Programs) -> list[str]:
    return _experiment(worker_set, worker_set.learner, worker_set.index, config, programs)


def _experiment(
    worker_set: WorkerSet, worker: Worker, task: int, config: Config, programs: Programs
) -> list[str]:
    flags = to_argv(
        config,
        job_name=worker.job,
        task=task,
        learner_host=worker_set.learner.address,
        actor_hosts=",".join(actor.address for actor in worker_set.actors),
    )
    devices = worker.cuda_visible_devices
    env = ["env", f"CUDA_VISIBLE_DEVICES={devices}"] if devices else []
    return [*env, programs.python, programs.experiment, *flags]
