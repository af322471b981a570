"""What a run will be, worked out before anything is touched: hosts, windows, commands, keys.

A plan follows from the CSV's rows, the flags and the run's id alone, so that every later action
works it out again from the run's record (``frontend.record``).
"""

import dataclasses
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Sequence

from frontend import commands, scripts, slurm, workers
from frontend.commands import LEARNERS, MONITOR, RELAY, Command, Mpi, Place
from frontend.flags import Options
from frontend.hosts.host import run_dir
from frontend.hosts.hosts import Here, Hosts, HostSpec, resolve, spec_of
from frontend.hosts.ssh import Trust
from frontend.workers import Worker, WorkerSet
from impala_torch.endpoint.keys import is_loopback
from impala_torch.flags.addresses import IPC
from impala_torch.flags.checks import MAX_SOCKET_PATH_BYTES
from impala_torch.flags.config import Config, default_logdir
from impala_torch.flags.errors import UserError
from impala_torch.flags.shares import shared_out

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEARNER_KEY, ACTOR_KEY = "learner.key", "actor.key"


@dataclasses.dataclass(frozen=True)
class HostPlan:
    """What a run has on one host."""

    spec: HostSpec
    place: Place
    actors: tuple[tuple[int, int], ...]  # (set, task) of each
    learners: tuple[int, ...]  # ranks
    windows: tuple[Command, ...]  # of its actors, and of their relay


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that is ready to start."""

    run_id: str
    sets: list[WorkerSet]
    config: Config  # every path in it is absolute
    options: Options
    hosts: tuple[HostPlan, ...]  # this machine first
    learners: tuple[str, ...]  # the command of all learners
    mpi: Mpi
    preflight: tuple[str, ...]  # the command that checks what needs torch
    keyed: bool  # whether endpoints need keys
    job: slurm.Allocation | None = None  # where Slurm is to start the workers

    @property
    def here(self) -> HostPlan:
        return self.hosts[0]

    @property
    def source(self) -> str:
        return self.options.workers_csv_path

    @property
    def logs(self) -> pathlib.Path:
        """Where the output of this machine's windows is kept."""
        return pathlib.Path(self.config.logdir) / "workers"

    @property
    def directory(self) -> pathlib.Path:
        """The run's directory here: record, keys, scripts."""
        return pathlib.Path(run_dir(self.run_id)).expanduser()

    @property
    def record(self) -> str:
        """The file from which every later action knows the run."""
        return str(self.directory / "run.json")

    def control(self) -> list[Command]:
        """The windows of this machine that are not actors'."""
        place = self.here.place
        supervised = commands.supervisor(place, self.record)
        windows = [Command(LEARNERS, tuple(commands.keep_log(supervised, place, LEARNERS)))]
        if self.options.monitor:
            windows.append(Command(MONITOR, tuple(commands.monitor(place, self.record))))
        return windows

    def host_of(self, index: int, task: int) -> HostPlan:
        """The host of an actor."""
        return next(host for host in self.hosts if (index, task) in host.actors)

    def ssh_config(self) -> str:
        """OpenSSH's configuration with which mpirun reaches the learners' hosts."""
        options: dict[str, dict[str, str]] = {}
        for host in self.hosts:
            login = host.spec.login
            if login is not None and host.learners:
                pairs = {"Port": str(login.port) if login.port else "", "User": login.username}
                pairs["IdentityFile"] = os.path.expanduser(login.key_path)
                options[login.host] = {name: value for name, value in pairs.items() if value}
        known = os.path.expanduser(self.options.known_hosts)
        return commands.ssh_config(options, known, self.options.ssh_accept_new_hosts)

    def open_hosts(self) -> Hosts:
        """Connections to the run's hosts, none made yet."""
        return Hosts(trust_of(self.options), self.options.ssh_concurrency)


def trust_of(options: Options) -> Trust:
    """Which hosts are trusted, and how long they may take."""
    return Trust(options.known_hosts, options.ssh_accept_new_hosts, options.ssh_timeout)


def plan(
    sets: Sequence[WorkerSet],
    config: Config,
    options: Options,
    run_id: str,
    job: slurm.Allocation | None = None,
) -> Plan:
    """Works out what a run would start; touches nothing.

    Args:
      sets: the worker sets.
      config: the training flags.
      options: the frontend's flags.
      run_id: the run's name.
      job: the allocation that the rows were made of, if they were.

    Raises:
      UserError: the rows cannot be a run's.
    """
    here = Here(ROOT, sys.executable)
    # Workers run in the project's directory, and all of them share the run's.
    own = [actor.num_envs for one in sets for actor in one.actors]  # 0 = --num_envs
    config = shared_out(config, len(sets), own.count(0), sum(own)).replace(
        # Runs that start in one second have other names, and other directories.
        logdir=os.path.abspath(
            config.logdir or pathlib.Path(default_logdir(config.level_name)).with_name(run_id)
        ),
        key_file=os.path.abspath(os.path.expanduser(config.key_file)) if config.key_file else "",
    )
    specs: dict[Worker, HostSpec] = {}
    for worker_set in sets:
        for worker in (worker_set.learner, *worker_set.actors):
            if job is not None:  # srun, run here, brings it to its node
                specs[worker] = spec_of_here(here)
                continue
            specs[worker] = spec_of(worker, here, options.remote_workdir, options.remote_python)
        if job is None:
            _check_addresses(worker_set, specs, options.workers_csv_path)
    if job is None:
        sets = [_with_socket(one, run_id) for one in sets]
    keyed = bool(config.key_file) or not all(one.socket for one in sets)
    local = spec_of_here(here)
    order = list(dict.fromkeys([local, *specs.values()]))
    hosts = tuple(
        _host_plan(spec, sets, specs, config, options, run_id, keyed, job) for spec in order
    )
    by_spec = {host.spec: host.place for host in hosts}
    mpi = Mpi(
        mpirun=shutil.which("mpirun") or "mpirun",
        as_root=os.geteuid() == 0,
        ssh_config=str(pathlib.Path(run_dir(run_id)).expanduser() / "ssh_config"),
        network=options.mpi_network,
        extra=_split(options.mpirun_args),
    )
    places = [by_spec[specs[worker_set.learner]] for worker_set in sets]
    _check_learner_logins(sets, specs, options.workers_csv_path)
    return Plan(
        run_id=run_id,
        sets=list(sets),
        config=config,
        options=options,
        hosts=hosts,
        learners=tuple(_learners(sets, config, places, mpi, job)),
        mpi=mpi,
        preflight=tuple(commands.preflight(config, by_spec[local])),
        keyed=keyed,
        job=job,
    )


def _learners(
    sets: Sequence[WorkerSet],
    config: Config,
    places: Sequence[Place],
    mpi: Mpi,
    job: slurm.Allocation | None,
) -> list[str]:
    """The command of all learners."""
    if job is None:
        return commands.learners(sets, config, places, mpi)
    programs = [
        commands.learner(worker_set, config, place)
        for worker_set, place in zip(sets, places, strict=True)
    ]
    if job.pmix or len(sets) == 1:
        nodes = [worker_set.learner.ip for worker_set in sets]
        return slurm.srun_learners(job, nodes, programs, cwd=str(ROOT))
    names = [worker_set.learner.ip for worker_set in sets]
    mpirun = commands.mpi_job(names, programs, mpi, over_ssh=False)
    return [*slurm.mpirun_environment(job), *mpirun]


def _with_socket(worker_set: WorkerSet, run_id: str) -> WorkerSet:
    """Serves this machine alone over a path that no other user can open, and not over a port.

    Where the path would be too long it has a port all the same, and keys.
    """
    path = pathlib.Path(run_dir(run_id)).expanduser() / f"set-{worker_set.index}.ipc"
    fits = len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    if not fits or not is_loopback(worker_set.learner.ip):
        return worker_set
    return dataclasses.replace(worker_set, socket=f"{IPC}{path}")


def spec_of_here(here: Here) -> HostSpec:
    return HostSpec("localhost", None, str(here.root), here.python)


def read(options: Options) -> tuple[list[WorkerSet], slurm.Allocation | None]:
    """The worker sets that the flags name, and the allocation if they are of one.

    Raises:
      UserError: there are none, or they cannot be.
    """
    if options.workers_from == "slurm":
        job = slurm.allocation(os.environ)
        rows = slurm.workers(
            job.env,
            job.hostnames,
            job.gpus,
            learners=options.slurm_learners,
            actors_per_node=options.slurm_actors_per_node,
            base_port=options.slurm_base_port,
        )
        return workers.deal(rows, slurm.SOURCE), dataclasses.replace(job, pmix=slurm.offers_pmix())
    if not options.workers_csv_path:
        raise UserError(
            "--workers_csv_path is missing: name the CSV file of the run's workers, such as "
            "sandbox/local_workers_example.csv"
        )
    return workers.read(options.workers_csv_path), None


def describe(run: Plan) -> str:
    """All commands of a run, ready for a shell: what --dry_run prints."""
    learners = ", ".join(worker_set.learner.address for worker_set in run.sets)
    lines = [f"# {LEARNERS} ({learners})", shlex.join(run.learners)]
    addresses = {
        commands.actor_name(worker_set.index, task): actor.address
        for worker_set in run.sets
        for task, actor in enumerate(worker_set.actors)
    }
    for host in run.hosts:
        where = "" if host.spec.is_here else f" on {host.spec.name}, in {host.spec.workdir}"
        for window in host.windows:
            named = f" ({addresses[window.name]})" if window.name in addresses else ""
            lines += [f"# {window.name}{named}{where}", shlex.join(window.argv)]
    return "\n".join(lines)


def _host_plan(
    spec: HostSpec,
    sets: Sequence[WorkerSet],
    specs: dict[Worker, HostSpec],
    config: Config,
    options: Options,
    run_id: str,
    keyed: bool,
    job: slurm.Allocation | None,
) -> HostPlan:
    actors = [
        (worker_set.index, task)
        for worker_set in sets
        for task, actor in enumerate(worker_set.actors)
        if specs[actor] == spec
    ]
    counts = [sum(index == one.index for index, _ in actors) for one in sets]
    relayed = options.relays == "always" and bool(actors) and job is None
    if options.relays == "auto" and not spec.is_here:
        relayed = max(counts) > 1
    place = _place(spec, config, run_id, keyed, relayed)
    windows = []
    if relayed:
        served = [worker_set for worker_set, count in zip(sets, counts, strict=True) if count]
        windows.append((RELAY, commands.relay(served, config, place)))
    for index, task in actors:
        name = commands.actor_name(index, task)
        argv = commands.actor(sets[index], task, config, place)
        if job is not None:
            node = sets[index].actors[task].ip
            argv = slurm.srun_actor(job, node, argv, name=name, cwd=str(ROOT))
        windows.append((name, argv))
    return HostPlan(
        spec,
        place,
        tuple(actors),
        tuple(one.index for one in sets if specs[one.learner] == spec),
        tuple(
            Command(name, tuple(commands.keep_going(argv, place, name))) for name, argv in windows
        ),
    )


def _place(spec: HostSpec, config: Config, run_id: str, keyed: bool, relayed: bool) -> Place:
    directory = run_dir(run_id)
    relay = f"{directory}/relay" if relayed else ""
    if spec.is_here:
        own = str(pathlib.Path(directory).expanduser())
        return Place(
            python=spec.python,
            experiment=str(ROOT / "experiment.py"),
            scripts=str(scripts.HERE),
            logs=str(pathlib.Path(config.logdir) / "workers"),
            logdir=config.logdir,
            learner_key=config.key_file or (f"{own}/{LEARNER_KEY}" if keyed else ""),
            actor_key=config.key_file or (f"{own}/{ACTOR_KEY}" if keyed else ""),
            relay=relay,
        )
    logdir = pathlib.Path(config.logdir)
    # What is in the project's folder here is in the project's folder there.
    inside = logdir.is_relative_to(ROOT)
    return Place(
        python=spec.python,
        experiment="experiment.py",
        scripts=scripts.FOLDER,
        logs=f"{directory}/workers",
        logdir=str(logdir.relative_to(ROOT) if inside else logdir),
        folder=spec.workdir,
        learner_key=f"{directory}/{LEARNER_KEY}" if keyed else "",
        actor_key=f"{directory}/{ACTOR_KEY}" if keyed else "",
        relay=relay,
    )


def _check_addresses(worker_set: WorkerSet, specs: dict[Worker, HostSpec], source: str) -> None:
    """Raises UserError where actors could not reach their learner's address."""
    learner = worker_set.learner
    where = f"{source} line {learner.line} column ip: '{learner.ip}'"
    try:
        addresses = resolve(learner.ip)
    except OSError as error:
        raise UserError(
            f"{where} is no known host: actors connect to a learner's ip, so write an address or "
            "a host name (aliases of ~/.ssh/config are for actors)"
        ) from error
    if "0.0.0.0" in addresses:
        raise UserError(f"{where} is no address to connect to: write this machine's")
    if not is_loopback(learner.ip):
        return
    for actor in worker_set.actors:
        if not specs[actor].is_here:
            raise UserError(
                f"{source} line {actor.line} column ip: the actor at {actor.ip} cannot reach its "
                f"learner at {learner.address} (line {learner.line}), which only this machine can: "
                "write the learner's address in the network"
            )


def _check_learner_logins(
    sets: Sequence[WorkerSet], specs: dict[Worker, HostSpec], source: str
) -> None:
    """Raises UserError where mpirun could not log in to the learners' hosts."""
    logins = {one.learner.ip: one.learner for one in reversed(sets)}
    for worker_set in sets:
        learner, first = worker_set.learner, logins[worker_set.learner.ip]
        mine, theirs = specs[learner], specs[first]
        if mine != theirs:
            raise UserError(
                f"{source} line {learner.line}: the learners of {learner.ip} (line {first.line} "
                "too) differ in ssh_port, ssh_username, workdir or python, and mpirun starts all "
                "learners of a host over one login: give them the same"
            )
        if mine.login is not None and mine.login.password and not mine.login.key_path:
            raise UserError(
                f"{source} line {learner.line} column ssh_password: mpirun logs in to the "
                f"learners' hosts by key only, so give {learner.ip} one ('ssh-copy-id', or the "
                "column ssh_key_path) and leave the password empty; actors may have passwords"
            )


def _split(text: str) -> tuple[str, ...]:
    try:
        return commands.split(text)
    except ValueError as error:
        raise UserError(f"--mpirun_args: {error}") from error
