"""Looks after a run, in the learners' window: starts the learners, and again when they die.

    python -m frontend.watch.supervise RECORD

Learners that die go on from their newest checkpoint, after 1 to 60 seconds, at most
--max_restarts times an hour; their actors wait for them. Actors that are gone for --heal_secs are
started again on their hosts, which may have been away. When the learners have ended for good, so
does everything else of the run.
"""

import collections
import contextlib
import os
import signal
import sys
import threading
import time

from frontend import record, run
from frontend.hosts.hosts import Hosts, HostSpec
from frontend.hosts.ssh import HostError
from frontend.mpirun import SIGNALS, Job
from frontend.run_plan import Plan
from frontend.watch import endpoints
from impala_torch.flags import exit_codes
from impala_torch.flags.errors import UserError

_WATCH_SECS = 5.0
_ACTORS_END_SECS = 2.0  # how long actors may take to end by the endpoint's word
_HOUR = 3600.0
_LONGEST_DELAY = 60.0
# Exit codes of learners that starting again would not change.
_FINAL = (exit_codes.FINISHED, exit_codes.USERS_MISTAKE, exit_codes.NOT_FINITE)


class Supervisor:
    """Runs the learners of a run to their end."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._answered = threading.Event()  # a learner's endpoint did, since the last start
        self._job: Job | None = None

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
            watcher.join()
            pid.unlink(missing_ok=True)
        return code

    def _run_learners(self) -> int:
        deaths: collections.deque[float] = collections.deque()
        delay = 1.0
        while True:
            code = self._run_once()
            if code in _FINAL or self._stopping.is_set():
                return code
            if not self._answered.is_set() and not deaths:
                return code  # they never ran: what ails them is not an accident
            now = time.monotonic()
            while deaths and deaths[0] < now - _HOUR:
                deaths.popleft()
            if len(deaths) >= self._plan.options.max_restarts:
                _say(
                    f"the learners died with exit code {code}, and were started again "
                    f"{len(deaths)} time(s) in the last hour already (--max_restarts)"
                )
                return code
            delay = 1.0 if not deaths else min(2 * delay, _LONGEST_DELAY)
            deaths.append(now)
            _say(
                f"the learners died with exit code {code}: starting them again from the newest "
                f"checkpoint in {delay:.0f} s ({len(deaths)} of {self._plan.options.max_restarts})"
            )
            if self._stopping.wait(delay):
                return code

    def _run_once(self) -> int:
        self._answered.clear()
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

    # --- actors ---

    def _watch(self) -> None:
        options = self._plan.options
        tried: dict[str, float] = {}
        with self._plan.open_hosts() as hosts:
            while not self._ended.wait(_WATCH_SECS):
                statuses = endpoints.ask_all(self._plan)
                if any(one.status is not None for one in statuses):
                    self._answered.set()
                if not options.heal_secs or self._stopping.is_set():
                    continue
                now = time.monotonic()
                gone = endpoints.absent(self._plan, statuses, options.heal_secs)
                # One that was started just now needs as long again to come.
                due = [name for name in gone if now - tried.get(name, -_HOUR) > options.heal_secs]
                if due and self._is_settled():
                    tried |= dict.fromkeys(due, now)
                    self._heal(hosts, due)

    def _is_settled(self) -> bool:
        """Whether the start is over: until then actors may well be missing."""
        started = (self._plan.directory / run.SUPERVISOR_PID).stat().st_mtime
        return time.time() - started > self._plan.options.heal_secs

    def _heal(self, hosts: Hosts, names: list[str]) -> None:
        try:
            healed = run.heal(self._plan, hosts, names, spare=(exit_codes.USERS_MISTAKE,))
        except Exception as error:  # the learners must not suffer from what actors' hosts do
            _say(f"cannot look after the actors: {error}")
            return
        for spec, result in healed.items():
            _tell_healed(spec, result)


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
