"""Every flag of the frontend, declared once; training's are ``impala_torch.flags.config``'s."""

import dataclasses
from typing import Any

from absl import flags

from impala_torch.flags.checks import check_ranges
from impala_torch.flags.command_line import declare
from impala_torch.flags.config import NO_LIMIT, flag

RUN, HOSTS, SLURM, MANY = "starting a run", "other hosts", "on Slurm", "a run's life"


@dataclasses.dataclass(frozen=True)
class Options:
    """The frontend's flags."""

    # --- starting a run ---
    workers_csv_path: str = flag(
        RUN,
        "",
        "CSV file of the run's workers, one a row, with the columns job, ip, tf_port, "
        "cuda_visible_devices, ssh_port, ssh_username, ssh_password (the last four may be "
        "empty), and if wanted ssh_key_path, workdir, python, num_envs; see "
        "sandbox/local_workers_example.csv.",
    )
    tmux_sess: str = flag(
        RUN, "impala", "Name of the run's tmux session, here and on each of its hosts."
    )
    action: str = flag(
        RUN,
        "start",
        "start a run; of the one in --tmux_sess: status (a table), logs (of --worker), attach (to "
        "its tmux session), stop (with a checkpoint), heal (start again what is gone); check (the "
        "hosts of the CSV, starting nothing).",
        choices=("start", "status", "logs", "attach", "stop", "heal", "check"),
    )
    dry_run: bool = flag(RUN, False, "Print every command and start nothing.")
    follow: bool = flag(
        RUN,
        False,
        "Show the learners' progress here until the run has ended; Ctrl-C stops the run, which "
        "then writes its checkpoint. With --action=logs, go on showing the log.",
    )
    replace: bool = flag(RUN, False, "Stop the run that is in --tmux_sess already, then start.")
    skip_check: bool = flag(RUN, False, "Start without checking the hosts first.")
    min_actors: int = flag(
        RUN,
        1,
        "Actors without which a start has failed: everything that was started is ended again. "
        "0 = any number will do.",
        low=0,
    )
    start_timeout: float = flag(
        RUN,
        120.0,
        "Seconds that an actor may take from its start to its learner's welcome.",
        above=0,
    )
    worker: str = flag(
        RUN, "learners", "Whose log --action=logs shows: learners, monitor, or as actor-0-1."
    )
    json: bool = flag(RUN, False, "Print --action=status as JSON.")
    # --- other hosts ---
    remote_workdir: str = flag(
        HOSTS,
        "",
        "Folder of the project on other hosts, where the CSV names none; ~ is the home there. "
        "Empty = the same path as here.",
    )
    remote_python: str = flag(
        HOSTS,
        "",
        "Interpreter on other hosts, where the CSV names none: a path, or one relative to the "
        "project there. Empty = .venv/bin/python.",
    )
    sync_code: bool = flag(
        HOSTS, False, "Copy the project to the other hosts first; only what has changed travels."
    )
    setup: bool = flag(
        HOSTS,
        False,
        "Set actors' hosts up first (docker/setup.sh actor): a virtual environment with what an "
        "actor needs; no root, no Horovod, no MPI.",
    )
    known_hosts: str = flag(HOSTS, "~/.ssh/known_hosts", "File of the host keys that are trusted.")
    ssh_accept_new_hosts: bool = flag(
        HOSTS,
        False,
        "Trust hosts that --known_hosts does not have and add them; a changed key is never "
        "accepted.",
    )
    ssh_concurrency: int = flag(HOSTS, 32, "Hosts that are spoken to at one time.", above=0)
    ssh_timeout: float = flag(HOSTS, 10.0, "Seconds that a host may take to answer SSH.", above=0)
    mpi_network: str = flag(
        HOSTS,
        "",
        "Network that learners on several hosts speak over, as 10.0.0.0/24 or an interface's "
        "name; this machine is in it too. Empty leaves the choice to Open MPI.",
    )
    mpirun_args: str = flag(HOSTS, "", "More arguments for mpirun, as one would write them.")
    relays: str = flag(
        HOSTS,
        "auto",
        "One relay per host of actors: weights cross the network once a host, unrolls in one "
        "stream. auto = on other hosts that have several actors of a learner.",
        choices=("auto", "always", "never"),
    )
    # --- on Slurm ---
    # The numbers' ranges are the allocation's: frontend.slurm checks them.
    workers_from: str = flag(
        SLURM,
        "csv",
        "csv reads --workers_csv_path; slurm makes the workers from the allocation that this runs "
        "in, and starts them with srun.",
        choices=("csv", "slurm"),
    )
    slurm_learners: int = flag(
        SLURM,
        0,
        "Learners. 0 = one for each GPU of the allocation, or one on its first node.",
        low=NO_LIMIT,
    )
    slurm_actors_per_node: int = flag(
        SLURM,
        0,
        "Actors on each node that has any. 0 = one for each CPU without a learner.",
        low=NO_LIMIT,
    )
    slurm_base_port: int = flag(
        SLURM,
        8001,
        "Port of the first learner's endpoint; the next learner has the next one.",
        low=NO_LIMIT,
    )
    # --- a run's life ---
    max_restarts: int = flag(
        MANY,
        3,
        "Restarts of learners that died, within an hour, from the newest checkpoint.",
        low=0,
    )
    heal_secs: float = flag(
        MANY,
        30.0,
        "Seconds that an actor may be gone before the supervisor looks at its host and starts it "
        "again there. 0 = never.",
        low=0,
    )
    monitor: bool = flag(MANY, True, "Show the run live in a tmux window 'monitor'.")


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Declares them, as chapters of their own in --helpfull."""
    declare(Options, flag_values)


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Options:
    """Reads the parsed flags. Raises UserError where values are impossible."""
    names = [field.name for field in dataclasses.fields(Options)]
    values: dict[str, Any] = {name: flag_values[name].value for name in names}
    options = Options(**values)
    check_ranges(options)
    return options
