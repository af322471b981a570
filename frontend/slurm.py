"""A run inside a Slurm allocation: its nodes as worker rows, its processes as srun job steps.

``allocation`` asks Slurm what the job has, ``workers`` makes the rows that a CSV file would have
held, ``srun_actor`` and ``srun_learners`` the commands that run workers on their nodes, where
other runs use SSH. Every command names its job: a tmux server may be older than the allocation
and know nothing of it.

Learners are one job step, of which each task is a rank. Open MPI takes part in it through PMIx,
which Slurm must offer (``srun --mpi=list``). Tried with Debian 12's Slurm 22.05.8 and Open MPI
4.1.4, two ranks of Horovod, two nodes:

* ``srun --mpi=pmix``: works. ``OMPI_COMM_WORLD_SIZE`` is not set before ``MPI_Init`` there, as
  mpirun does it, so the step sets it (``scripts/by_rank.sh``).
* ``srun --mpi=pmi2``: fails in ``MPI_Init``; Debian's Open MPI is built for PMIx only.
* ``mpirun`` in the allocation, which starts its daemons by srun itself: works, and is for where
  PMIx is not offered (``mpirun_environment``).

Steps overlap: more actors than CPUs, or actors beside learners, would else wait for each other
for ever. Each may use all CPUs that the job has on its node; the kernel shares them out.
"""

import dataclasses
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

from frontend import scripts
from frontend.workers import Worker
from impala_torch.flags.errors import UserError

SOURCE = "Slurm's allocation"  # in messages, where a CSV's name would stand
# What srun passes on to its tasks, and means stop to learners: SIGTERM would end them at once.
STOP_SIGNAL = signal.SIGUSR1
_FIRST_ACTOR_PORT = 9001
_ASK_SECS = 30.0
# What the allocation's variables must have, and mpirun wants.
_NEEDED = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE")
_KEPT = (*_NEEDED, "SLURM_JOB_NUM_NODES", "SLURM_TASKS_PER_NODE", "SLURM_CONF")
# Options of sbatch and salloc come back as defaults of srun; these contradict a step's own.
_CONTRADICTING = (
    *("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_CORE", "SLURM_NTASKS_PER_SOCKET"),
    *("SLURM_NTASKS_PER_GPU", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_HINT"),
    *("SLURM_CPUS_PER_GPU", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_NODE"),
    *("SLURM_EXACT", "SLURM_EXCLUSIVE", "SLURM_OVERCOMMIT"),
)


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What Slurm gave the job; ``dataclasses.asdict`` of it is JSON, and ``**`` reads it back."""

    env: Mapping[str, str]  # the variables of the job that are needed later
    hostnames: Sequence[str]  # its nodes, in Slurm's order
    gpus: Mapping[str, int]  # how many by node, where there are any
    pmix: bool = True  # whether srun can start MPI's ranks

    @property
    def job_id(self) -> str:
        return self.env["SLURM_JOB_ID"]

    @property
    def cpus(self) -> dict[str, int]:
        """How many CPUs the job has, by node."""
        return _cpus_of(self.env, self.hostnames)


def allocation(env: Mapping[str, str]) -> Allocation:
    """Asks Slurm what the job of the environment ``env`` has.

    Raises:
      UserError: this is not inside an allocation, or Slurm does not answer.
    """
    if missing := [name for name in _NEEDED if not env.get(name)]:
        raise UserError(
            f"this is not inside a Slurm allocation ({missing[0]} is not set): run the frontend "
            "in a script that sbatch started, or in salloc's shell"
        )
    for program in ("scontrol", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"{program} is not here: Slurm's commands must be on this host's PATH")
    gpus: dict[str, int] = {}
    for nodes, count in gpus_of(_ask("-d", "show", "job", env["SLURM_JOB_ID"])):
        if count:
            gpus |= dict.fromkeys(_ask("show", "hostnames", nodes).split(), count)
    return Allocation(
        env={name: env[name] for name in _KEPT if name in env},
        hostnames=tuple(_ask("show", "hostnames", env["SLURM_JOB_NODELIST"]).split()),
        gpus=gpus,
    )


def workers(
    env: Mapping[str, str],
    hostnames: Sequence[str],
    gpus: Mapping[str, int],
    *,
    learners: int,
    actors_per_node: int,
    base_port: int,
) -> list[Worker]:
    """The rows of a run on an allocation's nodes: learners, then actors.

    Learners go where GPUs are, one for each; without any, to the first node. Actors go to the
    nodes without learners, or to all nodes where each has one.

    Args:
      env: holds SLURM_JOB_CPUS_PER_NODE.
      hostnames: the nodes.
      gpus: how many by node; a learner's are numbered from 0, as Slurm shows a job its own.
      learners: how many; 0 is one for each GPU, or one.
      actors_per_node: how many; 0 is the node's CPUs less its learners, and at least one.
      base_port: of the first learner's endpoint; the next have the next.

    Raises:
      UserError: the numbers do not fit the allocation.
    """
    if learners < 0 or actors_per_node < 0:
        raise UserError("--slurm_learners and --slurm_actors_per_node must not be negative")
    cpus = _cpus_of(env, hostnames)
    slots = [(node, str(gpu)) for node in hostnames for gpu in range(gpus.get(node, 0))]
    if learners > len(slots) > 0:
        raise UserError(
            f"--slurm_learners={learners} is more than the {len(slots)} GPU(s) of the allocation: "
            "no two learners can share one"
        )
    wanted = learners or len(slots) or 1
    slots = slots[:wanted] or [(hostnames[0], "")] * wanted
    if not 0 < base_port <= 65536 - len(slots):
        raise UserError(f"--slurm_base_port={base_port} leaves no ports for {len(slots)} learners")
    at_learners = [node for node, _ in slots]
    places = []
    for node in [node for node in hostnames if node not in at_learners] or hostnames:
        places += [node] * (actors_per_node or max(1, cpus[node] - at_learners.count(node)))
    if len(places) < len(slots):
        raise UserError(
            f"the allocation has room for {len(slots)} learners and {len(places)} actor(s), and "
            "each learner needs one: raise --slurm_actors_per_node or lower --slurm_learners"
        )
    first_actor = max(_FIRST_ACTOR_PORT, base_port + len(slots))
    if first_actor + len(places) > 65536:
        raise UserError(f"--slurm_base_port={base_port} leaves no numbers for the actors")
    rows = [("learner", node, base_port + i, gpu) for i, (node, gpu) in enumerate(slots)]
    rows += [("actor", node, first_actor + i, "") for i, node in enumerate(places)]
    return [_worker(*row, number) for number, row in enumerate(rows, start=1)]


def srun_actor(
    job: Allocation, node: str, argv: Sequence[str], *, name: str = "actor", cwd: str = ""
) -> list[str]:
    """The command that runs an actor (or a relay) on its node, and ends with its exit code.

    Args:
      job: the allocation.
      node: where to run.
      argv: what to run there.
      name: the step's, as squeue --steps shows it.
      cwd: the folder to run in; empty is the command's own.
    """
    options = ["--nodes=1", "--ntasks=1", f"--nodelist={node}", "--mpi=none", "--gres=none"]
    # One Ctrl-C in its window is enough; srun itself wants two.
    options.append("--quit-on-interrupt")
    return [*_srun(job, name, cwd, job.cpus[node]), *options, *argv]


def srun_learners(
    job: Allocation,
    nodes: Sequence[str],
    programs: Sequence[Sequence[str]],
    *,
    name: str = "learners",
    cwd: str = "",
) -> list[str]:
    """The command of all learners: one job step with a task for each, which ends with them.

    Args:
      job: the allocation.
      nodes: of the learners, by rank.
      programs: what they run, by rank.
      name: the step's.
      cwd: the folder to run in; empty is the command's own.
    """
    count, here = len(programs), len(set(nodes))
    # The tasks of a step are alike: what each learner of the fullest node can have.
    cpus = max(1, min(job.cpus[node] // nodes.count(node) for node in nodes))
    srun = _srun(job, name, cwd, cpus)
    if count == 1:
        alone = ["--nodes=1", "--ntasks=1", f"--nodelist={nodes[0]}", "--mpi=none"]
        return [*srun, *alone, *programs[0]]
    options = [f"--nodes={here}", f"--ntasks={count}", f"--nodelist={','.join(nodes)}"]
    # Rank i on the i-th node of the list, whatever Slurm's own order of nodes.
    options += ["--distribution=arbitrary", "--mpi=pmix"]
    words = [word for program in programs for word in ("::", *program)][1:]
    return [*srun, *options, "bash", str(scripts.HERE / "by_rank.sh"), *words]


def mpirun_environment(job: Allocation) -> list[str]:
    """What goes before an mpirun that is to start its daemons by srun in the allocation.

    For where ``offers_pmix`` is false; the arguments are those of any mpirun, its hosts the nodes.
    """
    tasks = {"SLURM_TASKS_PER_NODE": job.env["SLURM_JOB_CPUS_PER_NODE"]}
    variables = {**tasks, **job.env}
    # Open MPI reads the older names.
    variables["SLURM_JOBID"] = job.job_id
    variables["SLURM_NODELIST"] = job.env["SLURM_JOB_NODELIST"]
    unset = [word for variable in _CONTRADICTING for word in ("-u", variable)]
    return ["env", *unset, *(f"{name}={value}" for name, value in variables.items())]


def offers_pmix() -> bool:
    """Whether srun here can start MPI's ranks. Raises UserError where it does not say."""
    return "pmix" in _run(["srun", "--mpi=list"])


def gpus_of(text: str) -> list[tuple[str, int]]:
    """(nodes, GPUs of each) as ``scontrol -d show job`` tells them; nodes as in node[1-2]."""
    lines = re.findall(r"^\s*Nodes=(\S+) CPU_IDs=\S+.*? GRES\w*=(\S*)", text, re.MULTILINE)
    return [
        (nodes, sum(map(int, re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))))
        for nodes, gres in lines
    ]


def cpus_per_node(text: str) -> list[int]:
    """SLURM_JOB_CPUS_PER_NODE, such as 4(x2),8, node by node: 4, 4, 8. Raises UserError."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise UserError(f"SLURM_JOB_CPUS_PER_NODE={text} is not of the form 4(x2),8")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _cpus_of(env: Mapping[str, str], hostnames: Sequence[str]) -> dict[str, int]:
    text = env.get("SLURM_JOB_CPUS_PER_NODE", "")
    counts = cpus_per_node(text)
    if len(counts) != len(hostnames):
        raise UserError(
            f"SLURM_JOB_CPUS_PER_NODE={text} is of {len(counts)} node(s), and the allocation has "
            f"{len(hostnames)}: {', '.join(hostnames)}"
        )
    return dict(zip(hostnames, counts, strict=True))


def _worker(job: str, ip: str, port: int, devices: str, line: int) -> Worker:
    return Worker(
        job=job,
        ip=ip,
        port=port,
        cuda_visible_devices=devices,
        ssh_port=0,
        ssh_username="",
        ssh_password="",
        line=line,
    )


def _srun(job: Allocation, name: str, cwd: str, cpus: int) -> list[str]:
    """What all steps have in common."""
    unset = [word for variable in _CONTRADICTING for word in ("-u", variable)]
    argv = ["env", *unset]
    argv += [f"SLURM_CONF={job.env['SLURM_CONF']}"] if "SLURM_CONF" in job.env else []
    argv += ["srun", f"--jobid={job.job_id}", f"--job-name={name}", "--overlap", "--mem=0"]
    argv += [f"--cpus-per-task={cpus}", "--input=none"]
    # A task that fails ends the step; the others would wait for it until their time is up.
    argv += ["--kill-on-bad-exit=1"]
    return [*argv, f"--chdir={cwd}"] if cwd else argv


def _ask(*words: str) -> str:
    return _run(["scontrol", *words])


def _run(argv: Sequence[str]) -> str:
    """What a command of Slurm says. Raises UserError where it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_SECS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"Slurm does not answer '{shlex.join(argv)}': {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"'{shlex.join(argv)}' failed: {said}")
    return done.stdout + done.stderr
