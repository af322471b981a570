"""Starts a run of learners and actors on the hosts that a CSV file lists, and looks after it.

    python run_experiment_mm_raw.py --workers_csv_path=sandbox/local_workers_example.csv \\
        --level_name=PongNoFrameskip-v4 --batch_size=32 --total_environment_frames=20000000
    python run_experiment_mm_raw.py --action=status        (or: logs, attach, stop, heal, check)

All flags of training reach the workers. --dry_run prints the commands and starts nothing;
--follow shows the learners' progress until the run has ended. --helpfull explains every flag.
"""

import os
import sys

from frontend import flags, record, run, run_plan, start
from frontend.flags import Options
from frontend.hosts import check, tmux
from frontend.hosts.hosts import HostSpec
from frontend.hosts.ssh import HostError
from frontend.run_plan import Plan
from frontend.tables import table
from frontend.watch import endpoints, follow, status
from frontend.watch.welcome import StartError
from impala_torch.flags import command_line
from impala_torch.flags.config import PER_PROCESS
from impala_torch.flags.errors import UserError


def main(argv: list[str]) -> int:
    """Does what the flags say.

    Returns:
      The exit code: 0, 1 for a start or an action that failed, 2 for bad input, 130 after Ctrl-C.
    """
    try:
        flags.define_flags()
        command_line.define_flags(skip=PER_PROCESS)
        command_line.parse_flags(argv)
        options = flags.from_flags()
        return _ACTIONS[options.action](options)
    except KeyboardInterrupt:  # what a start had begun is ended by now
        print("interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}" if not line.startswith(" ") else line, file=sys.stderr)
        return 1 if isinstance(error, StartError) else 2


def _planned(options: Options) -> Plan:
    config = command_line.from_flags()
    sets, job = run_plan.read(options)
    return run_plan.plan(sets, config, options, record.new_id(), job)


def _start(options: Options) -> int:
    planned = _planned(options)
    if options.dry_run:
        print(run_plan.describe(planned))
        return 0
    session = tmux.Session(options.tmux_sess)
    _make_way(options, session)
    begin = follow.end_of_log(planned.logs)
    start.start(planned, session)
    print(start.summary(planned, session.name), flush=True)
    return follow.follow(session, planned.logs, begin) if options.follow else 0


def _make_way(options: Options, session: tmux.Session) -> None:
    """Refuses to start where a run has the session's name, or with --replace stops that."""
    path = record.find(options.tmux_sess)
    running = record.load(path) if path else None
    if running is None or not run.is_running(running):
        return
    if options.replace:
        run.stop(running)
        return
    raise UserError(
        f"run {running.run_id} is in tmux session '{session.name}' already (logdir "
        f"{running.config.logdir}): look at it with --action=status, stop it with --action=stop, "
        "start in its place with --replace, or choose another --tmux_sess"
    )


def _of_session(options: Options) -> Plan:
    path = record.find(options.tmux_sess)
    if not path:
        raise UserError(f"there is no run in tmux session '{options.tmux_sess}': see --tmux_sess")
    return record.load(path)


def _running(options: Options) -> Plan:
    """The run of the session; raises UserError where it has ended."""
    found = _of_session(options)
    if run.is_running(found):
        return found
    raise UserError(
        f"run {found.run_id} has ended: --action=logs shows its logs, the start's command with "
        f"--logdir={found.config.logdir} goes on"
    )


def _status(options: Options) -> int:
    running = _running(options)
    statuses = endpoints.ask_all(running)
    print(status.as_json(statuses) if options.json else status.table(statuses))
    return 0 if all(one.status is not None and not one.stalled_secs for one in statuses) else 1


def _logs(options: Options) -> int:
    return run.logs(_of_session(options), options.worker, options.follow)


def _attach(options: Options) -> int:
    _running(options)
    os.execvp("tmux", ["tmux", "attach", "-t", f"={options.tmux_sess}"])


def _stop(options: Options) -> int:
    return run.stop(_of_session(options))


def _heal(options: Options) -> int:
    running = _running(options)
    with running.open_hosts() as hosts:
        hung = endpoints.gone(endpoints.ask_all(running))
        healed = run.heal(running, hosts, hung=hung)
    rows = [_healed(spec, result) for spec, result in healed.items()]
    print("\n".join(table([("host", "started again", "reason"), *rows])))
    return int(any(isinstance(result, HostError) for result in healed.values()))


def _healed(spec: HostSpec, result: list[str] | HostError) -> tuple[str, str, str]:
    if isinstance(result, HostError):
        return spec.name, "", str(result)
    return spec.name, ", ".join(result) or "nothing was gone", ""


def _check(options: Options) -> int:
    return check.check(_planned(options))


_ACTIONS = {
    "start": _start,
    "status": _status,
    "logs": _logs,
    "attach": _attach,
    "stop": _stop,
    "heal": _heal,
    "check": _check,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
