"""Starts a run on its hosts, and tells what became of each actor.

What cannot work is told before anything starts: what needs torch to be known, such as whether
there is an agent of that name, by a short process of its own.
"""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from frontend import commands, record, workers
from frontend.hosts import check, sync, tmux
from frontend.hosts.hosts import Hosts, HostSpec, resolve
from frontend.hosts.ssh import HostError
from frontend.run import KEYS, base_request, end_all, start_request
from frontend.run_plan import ACTOR_KEY, LEARNER_KEY, ROOT, Plan
from frontend.tables import table
from frontend.watch import endpoints, follow
from frontend.watch.welcome import ActorState, StartError, Welcome
from impala_torch.endpoint import keys as curve
from impala_torch.flags.errors import UserError

OPERATOR = "frontend"  # the name of the key with which endpoints are asked how they are
_PREFLIGHT_SECS = 300.0  # that it may take to make the agent and an environment


def start(run: Plan, session: tmux.Session, out: TextIO = sys.stdout) -> None:
    """Starts a run on all of its hosts, and prints what became of each actor.

    Raises:
      UserError: the session exists, a program is missing, a learner's port is taken, the agent,
        the level or the checkpoint does not fit, the run's directory cannot be written to, or a
        learner's host cannot be used; then nothing runs.
      StartError: a learner failed, or fewer than --min_actors started; then nothing runs any more.
    """
    session.check_free()
    if run.job is None:  # Slurm's nodes are not looked at: its steps say what fails there
        if commands.needs_mpi([_place_of(run, one.index) for one in run.sets]):
            _check_mpirun()
        for worker_set in run.sets:
            if worker_set.index in run.here.learners:
                _check_port_is_free(worker_set.learner, run.source)
    _check_agent_and_level(run)
    if run.job is None and (warning := workers.privacy_warning(run.source, run.sets)):
        print(f"warning: {warning}", file=out, flush=True)
    with run.open_hosts() as hosts:
        failed = _prepare(run, hosts, out)
        begin = follow.end_of_log(run.logs)
        try:
            _start_here(run, hosts)
            failed |= _start_there(run, hosts, failed)
            states = Welcome(run, hosts, session, failed, begin).wait()
        except BaseException:
            end_all(run, hosts)
            raise
        _report(run, states, out)
        welcomed = sum(state.welcomed for state in states.values())
        if welcomed < run.options.min_actors:
            end_all(run, hosts)
            raise StartError(
                f"only {welcomed} of {len(states)} actor(s) started, and --min_actors="
                f"{run.options.min_actors}: everything was ended again"
            )


def summary(run: Plan, session_name: str) -> str:
    """Where a run's files are, how to look at it and how to stop it."""
    again = f"python run_experiment_mm_raw.py --tmux_sess={session_name} --action="
    where = "" if 0 in run.here.learners else f" on {run.sets[0].learner.ip}"
    return "\n".join(
        [
            f"logdir: {_place_of(run, 0).logdir}{where}",
            f"attach: tmux attach -t {session_name}   (Ctrl-b n: next window, Ctrl-b d: leave)",
            f"status: {again}status",
            f"stop:   {again}stop   (with a checkpoint)",
        ]
    )


def _prepare(run: Plan, hosts: Hosts, out: TextIO) -> dict[HostSpec, str]:
    """Readies all hosts. Returns those that failed, with the reasons.

    Raises:
      UserError: a learner's host is among them, or nothing can be written here.
    """
    there = [host for host in run.hosts if not host.spec.is_here]
    failed: dict[HostSpec, str] = {}
    if there and (run.options.sync_code or run.options.setup):
        failed |= sync.sync_and_set_up(run, hosts, out)
        _check_learners_hosts(run, failed)
    if there and not run.options.skip_check:
        failed |= check.before_start(run, hosts, failed, out)
        _check_learners_hosts(run, failed)
    contents = _make_keys(run)
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--logdir={run.config.logdir} cannot be written to: {error.strerror}"
        ) from error
    _put_here(run, hosts, contents)
    good = [host.spec for host in there if host.spec not in failed]
    # mpirun starts ranks there by itself; their keys must be there before.
    replies = hosts.on_all(
        good,
        lambda spec: hosts.ask(
            spec, {"op": "put", **base_request(run), "files": contents.get(spec, {})}
        ),
    )
    failed |= {spec: str(reply) for spec, reply in replies.items() if isinstance(reply, HostError)}
    _check_learners_hosts(run, failed)
    return failed


def _check_learners_hosts(run: Plan, failed: Mapping[HostSpec, str]) -> None:
    for host in run.hosts:
        if host.learners and host.spec in failed:
            raise UserError(f"the learners' host {host.spec.name}: {failed[host.spec]}")


def _make_keys(run: Plan) -> dict[HostSpec, dict[str, str]]:
    """New keys of the run: the files that each host gets. Operator's and all hosts' lie here."""
    if not run.keyed:
        return {}
    if run.config.key_file:  # the user's own, for all
        curve.load(run.config.key_file)
        text = pathlib.Path(run.config.key_file).read_text()
        return {
            host.spec: {LEARNER_KEY: text, ACTOR_KEY: text}
            for host in run.hosts
            if not host.spec.is_here
        }
    tasks: dict[str, list[curve.Task]] = {OPERATOR: []}
    for host in run.hosts:
        tasks.setdefault(host.spec.name, []).extend(host.actors)
    learner, others = curve.make_for_run(tasks)
    contents = {}
    for host in run.hosts:
        files = {}
        if host.learners:
            files[LEARNER_KEY] = json.dumps(learner)
        if host.actors:
            files[ACTOR_KEY] = json.dumps(others[host.spec.name])
        if host.spec.is_here:
            files[endpoints.OPERATOR_KEY] = json.dumps(others[OPERATOR])
        contents[host.spec] = files
    return contents


def _put_here(run: Plan, hosts: Hosts, contents: Mapping[HostSpec, Mapping[str, str]]) -> None:
    """Writes the run's record, keys and mpirun's SSH configuration here."""
    files = dict(contents.get(run.here.spec, {}))
    files[KEYS] = json.dumps({spec.name: content for spec, content in contents.items()})
    files[pathlib.Path(run.mpi.ssh_config).name] = run.ssh_config()
    hosts.ask(run.here.spec, {"op": "put", **base_request(run), "files": files})
    record.save(run)


def _start_here(run: Plan, hosts: Hosts) -> None:
    windows = [*run.control(), *run.here.windows]
    hosts.ask(run.here.spec, start_request(run, run.here, windows, {}))


def _start_there(run: Plan, hosts: Hosts, failed: Mapping[HostSpec, str]) -> dict[HostSpec, str]:
    by_spec = {
        host.spec: host
        for host in run.hosts
        if host.windows and not host.spec.is_here and host.spec not in failed
    }
    replies = hosts.on_all(
        by_spec,
        lambda spec: hosts.ask(spec, start_request(run, by_spec[spec], by_spec[spec].windows, {})),
    )
    return {spec: str(reply) for spec, reply in replies.items() if isinstance(reply, HostError)}


def _report(run: Plan, states: Mapping[tuple[int, int], ActorState], out: TextIO) -> None:
    rows: list[Sequence[str]] = [("host", "task", "learner", "state", "reason")]
    for worker_set in run.sets:
        learner = worker_set.learner
        rows.append((learner.ip, str(worker_set.index), learner.address, "answers", ""))
        for task, actor in enumerate(worker_set.actors):
            state = states[worker_set.index, task]
            name = commands.actor_name(worker_set.index, task)
            rows.append((actor.ip, name, learner.address, state.state, state.reason))
    welcomed = sum(state.welcomed for state in states.values())
    lines = [
        f"Started in tmux session '{run.options.tmux_sess}' (run {run.run_id}): {len(run.sets)} "
        f"learner(s), {welcomed} of {len(states)} actor(s)",
        *table(rows),
    ]
    for (index, task), state in states.items():
        if state.log:
            lines.append(f"the end of {commands.actor_name(index, task)}'s log:")
            lines += [f"    {line}" for line in state.log]
    if welcomed < len(states):
        lines.append(
            f"{len(states) - welcomed} actor(s) failed; the run goes on with the others. "
            "--action=heal tries those again."
        )
    print("\n".join(lines), file=out, flush=True)


def _place_of(run: Plan, index: int) -> commands.Place:
    """The place of a learner."""
    return next(host.place for host in run.hosts if index in host.learners)


def _check_mpirun() -> None:
    if shutil.which("mpirun") is None:
        raise UserError(
            "several learners, or one on another host, need mpirun, which is not installed: "
            "'docker/setup.sh train' does that; one learner here needs none"
        )


def _check_agent_and_level(run: Plan) -> None:
    try:
        result = subprocess.run(
            run.preflight,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PREFLIGHT_SECS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the check of agent and level did not end within {_PREFLIGHT_SECS:.0f} s: does the "
            f"environment of --level_name={run.config.level_name} hang?"
        ) from None
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["the check of agent and level failed"])[-1]
        raise UserError(last.removeprefix("error: "))


def _check_port_is_free(worker: workers.Worker, source: str) -> None:
    """Raises UserError where something listens at a learner's address already."""
    for address in resolve(worker.ip):
        with socket.socket() as probe:
            # What has just ended may leave its connections waiting; they are in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, worker.port))
            except OSError as error:
                raise UserError(
                    f"{source} line {worker.line}: the learner cannot have {worker.address} "
                    f"({error.strerror}): choose another tf_port or end what uses it"
                ) from error
