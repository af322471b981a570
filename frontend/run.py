"""What can be done to a run that was started: heal it, stop it, show its logs."""

import contextlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TextIO

from frontend import commands
from frontend.commands import LEARNERS, MONITOR, RELAY, Command
from frontend.hosts import tmux
from frontend.hosts.hosts import Hosts, HostSpec
from frontend.hosts.ssh import HostError
from frontend.run_plan import HostPlan, Plan
from frontend.tables import table
from impala_torch.flags.errors import UserError

KEYS = "hosts.key"  # what each host holds, kept here to give it again to one that comes back
SUPERVISOR_PID = "supervisor.pid"
_FOLLOW_SECS = 2.0  # between two looks at a log
_STOP_SECS = 120.0  # how long learners may take for their checkpoint
_ACTORS_END_SECS = 10.0  # how long actors may take to end after their learners


def start_request(
    run: Plan, host: HostPlan, windows: Sequence[Command], files: Mapping[str, str]
) -> dict[str, Any]:
    """What a host is asked for: to run windows, with files beside them."""
    return {
        "op": "start",
        **base_request(run),
        # On other hosts the project's folder is where the request is answered.
        "cwd": host.spec.workdir if host.spec.is_here else ".",
        "files": dict(files),
        "windows": [[window.name, list(window.argv)] for window in windows],
    }


def base_request(run: Plan) -> dict[str, Any]:
    """What every request names: the session, and whose it is."""
    return {"session": run.options.tmux_sess, "run_id": run.run_id}


def look(run: Plan, hosts: Hosts, host: HostPlan) -> dict[str, dict[str, Any]]:
    """The run's windows on a host, by name (see ``host._windows``). Raises HostError."""
    request = {"op": "windows", **base_request(run), "logs": host.place.logs}
    return {window["name"]: window for window in hosts.ask(host.spec, request)["windows"]}


def heal(
    run: Plan,
    hosts: Hosts,
    only: Sequence[str] | None = None,
    spare: Sequence[int] = (),
    hung: Collection[str] = (),
) -> dict[HostSpec, list[str] | HostError]:
    """Starts again what is gone of the actors' and relays' windows.

    Args:
      run: the run.
      hosts: connections to its hosts.
      only: names of actors; others' hosts are not looked at. None is all.
      spare: windows whose command failed with one of these exit codes stay as they are.
      hung: names of actors whose process, where it runs, does so in vain: it is ended and started
        again. So is the relay of a host of which these are all the actors.

    Returns:
      By host, the names of the windows that were started again.
    """
    chosen = {
        host.spec: host
        for host in run.hosts
        if host.windows
        and (only is None or any(commands.actor_name(*actor) in only for actor in host.actors))
    }
    keys = _keys_of_hosts(run)

    def work(spec: HostSpec) -> list[str]:
        host = chosen[spec]
        windows = host.windows
        if spare:
            now = look(run, hosts, host)
            windows = tuple(
                window
                for window in windows
                if now.get(window.name, {}).get("exit_code") not in spare
            )
        files = {} if spec.is_here else keys.get(spec.name, {})
        names = [commands.actor_name(*actor) for actor in host.actors]
        in_vain = [name for name in names if name in hung]
        if in_vain == names:
            in_vain.append(RELAY)
        request = {**start_request(run, host, windows, files), "hung": in_vain}
        return hosts.ask(spec, request)["started"]

    return hosts.on_all(chosen, work)


def stop(run: Plan, out: TextIO = sys.stdout, wait_secs: float = _STOP_SECS) -> int:
    """Stops a run: learners with a checkpoint, then actors, then what is left of it.

    Returns:
      The exit code: 0, or 1 where a host could not be reached.
    """
    session = tmux.Session(run.options.tmux_sess)
    running = _supervisor(run)
    if running:
        print("stopping after a checkpoint ...", file=out, flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running, signal.SIGTERM)
        if not _wait(lambda: not _supervisor(run), wait_secs):
            print(f"the learners did not end within {wait_secs:.0f} s", file=out, flush=True)
    with run.open_hosts() as hosts:
        _wait(lambda: not _running_here(run, session), _ACTORS_END_SECS)
        ended = end_all(run, hosts)
    rows: list[Sequence[str]] = [("host", "ended by force", "reason")]
    for spec, result in ended.items():
        if isinstance(result, HostError):
            rows.append((spec.name, "unknown", str(result)))
        else:
            left = [name for name in result if name != MONITOR]
            rows.append((spec.name, ", ".join(left) or "nothing was left", ""))
    print("\n".join([f"run {run.run_id} has ended", *table(rows)]), file=out, flush=True)
    return int(any(isinstance(result, HostError) for result in ended.values()))


def end_all(run: Plan, hosts: Hosts) -> dict[HostSpec, list[str] | HostError]:
    """Ends what is left of a run on all hosts, and only that: by host, which windows."""
    return hosts.on_all(
        [host.spec for host in run.hosts],
        lambda spec: hosts.ask(spec, {"op": "end", **base_request(run), "keep": True})["ended"],
    )


def end_all_but_control(run: Plan, hosts: Hosts) -> None:
    """Ends what is left of a run but the windows of its learners and monitor; keys go too."""
    hosts.on_all(
        [host.spec for host in run.hosts if not host.spec.is_here],
        lambda spec: hosts.ask(spec, {"op": "end", **base_request(run), "keep": True}),
    )
    session = tmux.Session(run.options.tmux_sess)
    if session.owner() == run.run_id:
        session.kill_windows([window.name for window in run.here.windows])
    for path in run.directory.glob("*.key"):
        path.unlink(missing_ok=True)


def is_running(run: Plan) -> bool:
    """Whether a run's supervisor or any of its windows here is there."""
    session = tmux.Session(run.options.tmux_sess)
    return bool(_supervisor(run)) or (session.exists() and session.owner() == run.run_id)


def _keys_of_hosts(run: Plan) -> dict[str, dict[str, str]]:
    try:
        return json.loads((run.directory / KEYS).read_text())
    except (OSError, ValueError):
        return {}


def _supervisor(run: Plan) -> int:
    """The id of the run's supervisor; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((run.directory / SUPERVISOR_PID).read_text())
        # An id comes again: what has it now must be a supervisor of this run.
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if run.record.encode() in words and b"frontend.watch.supervise" in words:
            return pid
    return 0


def _running_here(run: Plan, session: tmux.Session) -> list[str]:
    """Windows of this machine that still run, but for the monitor."""
    if session.owner() != run.run_id:
        return []
    names = [window.name for window in session.windows() if window.exit_code is None]
    return [name for name in names if name != MONITOR]


def _wait(condition: Callable[[], Any], secs: float) -> bool:
    deadline = time.monotonic() + secs
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def logs(run: Plan, worker: str, go_on: bool, out: TextIO = sys.stdout, lines: int = 40) -> int:
    """Shows the end of a worker's log, from its host; with ``go_on`` also what is added.

    Raises:
      UserError: the run has no such worker, or its host cannot be asked.
    """
    spec, path = _log_of(run, worker)
    with run.open_hosts() as hosts:
        reply = hosts.ask(spec, {"op": "log", "path": path, "lines": lines})
        if reply.get("missing") and not go_on:
            raise UserError(f"there is no log yet: {path} on {spec.name}")
        try:
            while True:
                out.write(reply["text"])
                out.flush()
                if not go_on:
                    return 0
                time.sleep(_FOLLOW_SECS)
                reply = hosts.ask(spec, {"op": "log", "path": path, "offset": reply["offset"]})
        except KeyboardInterrupt:
            return 130


def _log_of(run: Plan, worker: str) -> tuple[HostSpec, str]:
    if worker in (LEARNERS, MONITOR):
        return run.here.spec, f"{run.here.place.logs}/{worker}.log"
    names = []
    for host in run.hosts:
        for window in host.windows:
            name = window.name if window.name.startswith("actor") else f"relay@{host.spec.name}"
            names.append(name)
            if worker == name:
                return host.spec, f"{host.place.logs}/{window.name}.log"
    shown = ", ".join([LEARNERS, *names[:20]]) + (", ..." if len(names) > 20 else "")
    raise UserError(f"--worker={worker} is none of this run's: {shown}")
