"""Looks after a run, in the learners' window: starts the learners, and again when they die.

    python -m frontend.watch.supervise RECORD

Learners that die go on from their newest checkpoint, after 1 to 60 seconds, at most
--max_restarts times an hour; their actors wait for them. Learners end themselves where they stand
still (``learning.watchdog``); those that are frozen, and all that nobody can be heard of, are ended
from here. Actors that are gone for --heal_secs are started again on their hosts, which may have
been away; those that hang are ended first. When the learners have ended for good, so does
everything else of the run.
"""

import collections
import contextlib
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import Any

from frontend import commands, record, run
from frontend.hosts import tmux
from frontend.hosts.hosts import Hosts, HostSpec
from frontend.hosts.ssh import HostError
from frontend.mpirun import SIGNALS, Job
from frontend.run_plan import Plan
from frontend.watch import endpoints
from impala_torch.flags import exit_codes
from impala_torch.flags.addresses import IPC, is_ipc, parse_address
from impala_torch.flags.errors import UserError

_WATCH_SECS = 5.0
_ACTORS_END_SECS = 2.0  # how long actors may take to end by the endpoint's word
# An actor whose process was seen to run so long ago, or --start_timeout, and that was not heard of
# since, hangs: it had the time to start, or to find its way back from a host that was cut off.
_HUNG_SECS = 60.0
_FROZEN_END_SECS = 20.0  # that mpirun may take to end frozen learners
_STOPPING_SECS = 30.0  # that learners which do not answer may take to stop
_PROBE_SECS = 2.0  # that a port may take to refuse
_WATCHER_END_SECS = 10.0
_HOUR = 3600.0
_LONGEST_DELAY = 60.0
# Exit codes of learners that starting again would not change.
_FINAL = (exit_codes.FINISHED, exit_codes.NOT_FINITE)


class Supervisor:
    """Runs the learners of a run to their end."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._answered = threading.Event()  # a learner's endpoint did, since the last start
        self._job: Job | None = None
        self._heard = time.monotonic()  # of any learner, or when they were started
        # Actors of whom nothing is heard and that run: since when they were seen to, and how often
        # they had been started again then.
        self._running: dict[str, tuple[float, int]] = {}
        self._given_up: set[str] = set()  # actors that this was said of
        self._told = ""  # of what fails each time

    def run(self) -> int:
        """Returns the learners' exit code."""
        for number in SIGNALS:
            signal.signal(number, self._stop)
        pid = self._plan.directory / run.SUPERVISOR_PID
        pid.write_text(str(os.getpid()))
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            code = self._run_learners()
        finally:
            self._ended.set()
            watcher.join(_WATCHER_END_SECS)
            pid.unlink(missing_ok=True)
        return code

    def _run_learners(self) -> int:
        deaths: collections.deque[float] = collections.deque()
        delay = 1.0
        while True:
            code = self._run_once()
            if code in _FINAL or self._stopping.is_set():
                return code
            # Of learners that ran before with these flags it is something that passes: a full disk,
            # an environment's server that is not up yet, a directory that is still locked.
            if code == exit_codes.USERS_MISTAKE and not deaths:
                return code
            if not self._answered.is_set() and not deaths:
                return code  # they never ran: what ails them is not an accident
            now = time.monotonic()
            while deaths and deaths[0] < now - _HOUR:
                deaths.popleft()
            if len(deaths) >= self._plan.options.max_restarts:
                _say(
                    f"the learners {_died(code)}, and were started again "
                    f"{len(deaths)} time(s) in the last hour already (--max_restarts)"
                )
                return code
            delay = 1.0 if not deaths else min(2 * delay, _LONGEST_DELAY)
            deaths.append(now)
            _say(
                f"the learners {_died(code)}: starting them again {self._from_where()} in "
                f"{delay:.0f} s ({len(deaths)} of {self._plan.options.max_restarts})"
            )
            if self._stopping.wait(delay):
                return code

    def _from_where(self) -> str:
        if 0 not in self._plan.here.learners:
            return "from the newest checkpoint, or from the beginning if none was written yet,"
        if any(pathlib.Path(self._plan.config.logdir).glob("checkpoint-*.pt")):
            return "from the newest checkpoint"
        return "from the beginning, since no checkpoint was written yet,"

    def _run_once(self) -> int:
        self._answered.clear()
        self._heard = time.monotonic()
        # A signal between the start and the assignment would find no job to stop.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        job = self._job = Job(self._plan.learners)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if self._stopping.is_set():
            job.stop()
        return job.wait()

    def _stop(self, *_: object) -> None:
        self._stopping.set()
        if self._job is not None:
            self._job.stop()

    # --- the watcher's thread ---

    def _watch(self) -> None:
        tried: dict[str, float] = {}
        with self._plan.open_hosts() as hosts:
            while not self._ended.wait(_WATCH_SECS):
                try:
                    self._look_around(hosts, tried)
                except Exception as error:  # neither learners nor the next look may suffer
                    words = f"cannot look after the run: {type(error).__name__}: {error}"
                    if words != self._told:
                        self._told = words
                        _say(words)

    def _look_around(self, hosts: Hosts, tried: dict[str, float]) -> None:
        """Ends learners that are frozen, and starts actors again that are gone."""
        options = self._plan.options
        statuses = endpoints.ask_all(self._plan)
        now = time.monotonic()
        if any(one.status is not None for one in statuses):
            self._answered.set()
            self._heard = now
        self._end_frozen_learners(now)
        if not options.heal_secs or self._stopping.is_set():
            return
        gone = endpoints.absent(self._plan, statuses, options.heal_secs)
        for name in self._running.keys() - set(gone):
            del self._running[name]
        # One that was started just now needs as long again to come.
        due = [name for name in gone if now - tried.get(name, -_HOUR) > options.heal_secs]
        if due and self._is_settled():
            tried |= dict.fromkeys(due, now)
            hung = self._find_hung(hosts, due)
            if hung:
                _say(f"{', '.join(hung)}: running, but not heard of: ending and starting it again")
            spare = (exit_codes.USERS_MISTAKE, exit_codes.GIVEN_UP)
            healed = run.heal(self._plan, hosts, due, spare=spare, hung=hung)
            for spec, result in healed.items():
                _tell_healed(spec, result)

    def _end_frozen_learners(self, now: float) -> None:
        """Ends learners of whom none answers, and which are there: no watchdog of theirs runs."""
        config, job = self._plan.config, self._job
        limit = config.stall_secs + self._plan.options.start_timeout
        if self._stopping.is_set():
            limit = _STOPPING_SECS
        if not config.stall_secs or job is None or now - self._heard < limit:
            return
        self._heard = now
        endpoints_at = [one.endpoint for one in self._plan.sets]
        if any(map(_refuses, endpoints_at)):  # its endpoint has ended; the rest of it may take long
            return
        _say(f"no learner has answered for {limit:.0f} s: ending them")
        processes = tmux.tree([job.pid])
        job.stop()
        job.stop()
        tmux.end(processes, _FROZEN_END_SECS)

    def _is_settled(self) -> bool:
        """Whether the start is over: until then actors may well be missing."""
        started = (self._plan.directory / run.SUPERVISOR_PID).stat().st_mtime
        return time.time() - started > self._plan.options.heal_secs

    def _tell_given_up(self, name: str, log: list[str]) -> None:
        if name not in self._given_up:
            self._given_up.add(name)
            last = log[-1] if log else "it failed at once, again and again"
            _say(f"{name}: {last}; its log: --action=logs --worker={name}")

    def _hung_secs(self) -> float:
        options = self._plan.options
        return max(_HUNG_SECS, options.heal_secs, options.start_timeout)

    def _find_hung(self, hosts: Hosts, names: list[str]) -> list[str]:
        """Those of the actors, of whom nothing is heard, that have run for long all the same."""
        by_spec = {
            host.spec: host
            for host in self._plan.hosts
            if any(commands.actor_name(*actor) in names for actor in host.actors)
        }
        looks = hosts.on_all(by_spec, lambda spec: run.look(self._plan, hosts, by_spec[spec]))
        windows: dict[str, dict[str, Any]] = {}
        for found in looks.values():
            windows |= {} if isinstance(found, HostError) else found
        now, hung = time.monotonic(), []
        for name in names:
            window = windows.get(name)
            if window is None or window["exit_code"] is not None:
                self._running.pop(name, None)
                if window and window["exit_code"] == exit_codes.GIVEN_UP:
                    self._tell_given_up(name, window["tail"])
                continue
            since, restarts = self._running.setdefault(name, (now, window["restarts"]))
            if restarts != window["restarts"]:  # it ends by itself, again and again
                self._running[name] = (now, window["restarts"])
            elif now - since >= self._hung_secs():
                hung.append(name)
                del self._running[name]
        return hung


def _died(code: int) -> str:
    if code == exit_codes.STALLED:
        return f"stood still and ended (exit code {code})"
    return f"died with exit code {code}"


def _refuses(endpoint: str) -> bool:
    """Whether nothing listens there; what is frozen still does, and a lost host says nothing."""
    is_path = is_ipc(endpoint)
    try:
        with socket.socket(socket.AF_UNIX if is_path else socket.AF_INET) as probe:
            probe.settimeout(_PROBE_SECS)
            probe.connect(
                endpoint.removeprefix(IPC) if is_path else parse_address(endpoint, "learner")
            )
            return False
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:
        return False


def _tell_healed(spec: HostSpec, result: list[str] | HostError) -> None:
    if isinstance(result, HostError):
        _say(f"host {spec.name}: {result}")
    elif result:
        _say(f"host {spec.name}: started again {', '.join(result)}")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')} supervisor] {text}", flush=True)


def _end_everything_else(plan: Plan, code: int) -> None:
    """Actors end by the endpoint's word after a clean end; after another nobody tells them."""
    if code == 0:
        time.sleep(_ACTORS_END_SECS)
    with plan.open_hosts() as hosts:
        run.end_all_but_control(plan, hosts)


def main(argv: list[str]) -> int:
    """Returns the learners' exit code."""
    try:
        plan = record.load(argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.USERS_MISTAKE
    code = Supervisor(plan).run()
    with contextlib.suppress(UserError):
        _end_everything_else(plan, code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
