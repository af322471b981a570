"""Worker sets and flags -> command lines, as pure functions: what --dry_run prints.

All learners of a run are ranks of one ``mpirun``, an application context each; one learner alone,
on this machine, needs neither MPI nor Horovod and is started plainly. Every actor is a command of
its own, on its own host.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from frontend.workers import Worker, WorkerSet
from impala_torch.flags.command_line import to_argv
from impala_torch.flags.config import Config

LEARNERS = "learners"  # the name of the learners' command, window and log
MONITOR = "monitor"
RELAY = "relay"

# Runs a rank in the project's folder on its host, wherever mpirun put it; the folder may be ~/...,
# or a path from the home. Not a file of frontend/scripts, which would have to be found in that
# folder first: mpirun starts programs without a shell, and knows no ~.
_IN_FOLDER = 'cd && cd "${0/#\\~/.}" && exec "$@"'


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a run, for one window."""

    name: str
    argv: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """What commands on one host run, and with which paths there."""

    python: str
    experiment: str  # experiment.py
    scripts: str  # directory of what the windows' shells run (frontend/scripts)
    logs: str  # directory of the windows' logs
    logdir: str  # the run's directory
    folder: str = ""  # the project's; empty where commands start in it
    learner_key: str = ""
    actor_key: str = ""
    relay: str = ""  # directory of the relay's sockets; empty without a relay


@dataclasses.dataclass(frozen=True)
class Mpi:
    """How mpirun is called."""

    mpirun: str
    as_root: bool = False  # Open MPI asks root to say that it means it
    ssh_config: str = ""  # for ranks on other hosts
    network: str = ""  # --mpi_network
    extra: tuple[str, ...] = ()  # --mpirun_args


def actor_name(index: int, task: int) -> str:
    """Name of an actor's command, window and log."""
    return f"actor-{index}-{task}"


def learners(
    sets: Sequence[WorkerSet], config: Config, places: Sequence[Place], mpi: Mpi
) -> list[str]:
    """The command of all learners; a learner's --task is its rank.

    Args:
      sets: the worker sets, by the learners' rank.
      config: the training flags.
      places: of each learner; with a ``folder`` where it is on another host.
      mpi: how to call mpirun.
    """
    programs = [
        learner(worker_set, config, place) for worker_set, place in zip(sets, places, strict=True)
    ]
    if not needs_mpi(places):
        return programs[0]
    return mpi_job(_mpi_hosts(sets, places), programs, mpi, any(place.folder for place in places))


def allreduce(sets: Sequence[WorkerSet], places: Sequence[Place], mpi: Mpi) -> list[str]:
    """The command that times an allreduce over the learners' hosts."""
    programs = [
        _in_folder([place.python, "-m", "impala_torch.measure.allreduce"], place)
        for place in places
    ]
    return mpi_job(_mpi_hosts(sets, places), programs, mpi, any(place.folder for place in places))


def mpi_job(
    hosts: Sequence[str], programs: Sequence[Sequence[str]], mpi: Mpi, over_ssh: bool
) -> list[str]:
    """One mpirun of a program for each rank, on its host."""
    argv = [mpi.mpirun]
    if mpi.as_root:
        argv.append("--allow-run-as-root")
    # Ranks share their cores with actors: never pinned to one, and yielding while they wait.
    argv += ["-bind-to", "none", "-map-by", "slot"]
    argv += _mca("mpi_yield_when_idle", "1")
    # Where ranks may not read each other's memory (in most containers) the default complains.
    argv += _mca("btl_vader_single_copy_mechanism", "none")
    # When a rank fails, the others get SIGTERM after so many seconds, and SIGKILL after as many
    # more. Stopping on purpose does not wait for it: see frontend/mpirun.py.
    argv += _mca("odls_base_sigkill_timeout", "5")
    if over_ssh:
        argv += _mca("plm_rsh_agent", f"ssh -F {mpi.ssh_config}")
        # A host that is lost is noticed within half a minute, not after eight.
        argv += _mca("oob_tcp_keepalive_time", "10")
        argv += _mca("oob_tcp_keepalive_intvl", "5")
        argv += _mca("oob_tcp_keepalive_probes", "3")
    if mpi.network:
        argv += _mca("oob_tcp_if_include", mpi.network)
        argv += _mca("btl_tcp_if_include", mpi.network)
    argv += mpi.extra
    for rank, (host, program) in enumerate(zip(hosts, programs, strict=True)):
        if rank > 0:
            argv.append(":")
        # The number is of the host's slots, and the same in every context.
        argv += ["-np", "1", "-H", f"{host}:{hosts.count(host)}", *program]
    return argv


def needs_mpi(places: Sequence[Place]) -> bool:
    """Whether learners are started by mpirun."""
    return len(places) > 1 or bool(places[0].folder)


def learner(worker_set: WorkerSet, config: Config, place: Place) -> list[str]:
    """The command of one learner."""
    config = config.replace(key_file=place.learner_key)
    argv = _experiment(worker_set, worker_set.learner, worker_set.index, config, place)
    return _in_folder(argv, place)


def actor(worker_set: WorkerSet, task: int, config: Config, place: Place) -> list[str]:
    """The command of one actor; its --task is its place among its learner's actors."""
    relay = f"ipc://{place.relay}/set-{worker_set.index}.ipc" if place.relay else ""
    config = config.replace(key_file=place.actor_key, relay=relay)
    return _experiment(worker_set, worker_set.actors[task], task, config, place)


def relay(sets: Sequence[WorkerSet], config: Config, place: Place) -> list[str]:
    """The command of a host's relay, for the worker sets of its actors."""
    key = [f"--key_file={place.actor_key}"] if place.actor_key else []
    return [
        *(place.python, "-m", "impala_torch.endpoint.relay", *key),
        f"--learner_timeout={config.learner_timeout}",
        place.relay,
        *(f"{worker_set.index}={worker_set.endpoint}" for worker_set in sets),
    ]


def preflight(config: Config, place: Place) -> list[str]:
    """The command that checks agent, level and checkpoint, before anything is started."""
    return [place.python, "-m", "impala_torch.preflight", *to_argv(config)]


def supervisor(place: Place, record: str) -> list[str]:
    """The command that starts the learners and looks after the run."""
    return [place.python, "-m", "frontend.watch.supervise", record]


def monitor(place: Place, record: str) -> list[str]:
    """The command of the live view."""
    return [place.python, "-m", "frontend.watch.monitor", record]


def keep_log(argv: Sequence[str], place: Place, name: str) -> list[str]:
    """The command with its output shown and appended to its log; the exit code stays its own."""
    return ["bash", f"{place.scripts}/keep_log.sh", f"{place.logs}/{name}.log", *argv]


def keep_going(argv: Sequence[str], place: Place, name: str) -> list[str]:
    """``keep_log`` of a command that is started again when it dies, after 1 to 60 seconds."""
    return ["bash", f"{place.scripts}/keep_going.sh", f"{place.logs}/{name}.log", *argv]


def ssh_config(options: Mapping[str, Mapping[str, str]], known_hosts: str, accept_new: bool) -> str:
    """OpenSSH's configuration for mpirun: by host what the CSV says, then the user's own.

    Args:
      options: by host, OpenSSH's options (Port, User, IdentityFile).
      known_hosts: file of trusted host keys.
      accept_new: whether hosts that are not in it are added.
    """
    lines = []
    for host, pairs in options.items():
        lines += [f"Host {host}", *(f"  {name} {_quoted(value)}" for name, value in pairs.items())]
    lines += [
        "Host *",
        "  BatchMode yes",
        "  ConnectTimeout 10",
        "  ServerAliveInterval 10",
        "  ServerAliveCountMax 3",
        f"  UserKnownHostsFile {_quoted(known_hosts)}",
        f"  StrictHostKeyChecking {'accept-new' if accept_new else 'yes'}",
        "  Include ~/.ssh/config",
    ]
    return "\n".join(lines) + "\n"


def split(text: str) -> tuple[str, ...]:
    """The words of --mpirun_args. Raises ValueError where quotes do not match."""
    return tuple(shlex.split(text))


def _mca(name: str, value: str) -> list[str]:
    return ["--mca", name, value]


def _mpi_hosts(sets: Sequence[WorkerSet], places: Sequence[Place]) -> list[str]:
    return [
        worker_set.learner.ip if place.folder else "localhost"
        for worker_set, place in zip(sets, places, strict=True)
    ]


def _in_folder(argv: Sequence[str], place: Place) -> list[str]:
    return ["bash", "-c", _IN_FOLDER, place.folder, *argv] if place.folder else list(argv)


def _experiment(
    worker_set: WorkerSet, worker: Worker, task: int, config: Config, place: Place
) -> list[str]:
    if worker.job == "actor" and worker.num_envs:
        config = config.replace(num_envs=worker.num_envs)
    flags = to_argv(
        config.replace(logdir=place.logdir),
        job_name=worker.job,
        task=task,
        learner_host=worker_set.endpoint,
        actor_hosts=",".join(actor.address for actor in worker_set.actors),
    )
    devices = worker.cuda_visible_devices
    env = ["env", f"CUDA_VISIBLE_DEVICES={devices}"] if devices else []
    return [*env, place.python, place.experiment, *flags]


def _quoted(value: str) -> str:
    """A value as OpenSSH's configuration reads it whole."""
    return f'"{value}"' if " " in value else value
