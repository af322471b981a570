"""Waits for what was started: each actor has its learner's welcome, or a reason why not."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence

from frontend import commands
from frontend.commands import LEARNERS
from frontend.hosts import tmux
from frontend.hosts.hosts import Hosts, HostSpec
from frontend.hosts.ssh import HostError
from frontend.run import look
from frontend.run_plan import Plan
from frontend.watch import endpoints
from impala_torch.flags.errors import UserError

_POLL_SECS = 0.5
_LOOK_SECS = 3.0  # between looks at the windows of actors that are awaited


class StartError(UserError):
    """A run did not start; what was started has been ended again."""


@dataclasses.dataclass
class ActorState:
    """What became of an actor that was started."""

    state: str = "starting"
    reason: str = ""
    log: Sequence[str] = ()  # the last lines of its log, where it failed

    @property
    def welcomed(self) -> bool:
        return self.state in ("welcomed", "run ended")


class Welcome:
    """Waits until each actor has its learner's welcome, or has failed."""

    def __init__(
        self,
        run: Plan,
        hosts: Hosts,
        session: tmux.Session,
        failed: Mapping[HostSpec, str],
        begin: int,
    ) -> None:
        """``begin`` is where in the learners' log this run begins, in bytes."""
        self._run, self._hosts, self._session, self._begin = run, hosts, session, begin
        self._states: dict[tuple[int, int], ActorState] = {}
        for host in run.hosts:
            reason = failed.get(host.spec, "")
            for actor in host.actors:
                self._states[actor] = ActorState("failed" if reason else "starting", reason)
        self._answered: set[int] = set()  # learners

    def wait(self) -> dict[tuple[int, int], ActorState]:
        """Returns the state of each actor, by (set, task). Raises StartError for a learner."""
        deadline = time.monotonic() + self._run.options.start_timeout
        looked = time.monotonic()
        while self._pending() or len(self._answered) < len(self._run.sets):
            self._check_learners()
            self._ask_learners()
            if time.monotonic() - looked > _LOOK_SECS:
                self._look_at_windows()
                looked = time.monotonic()
            if time.monotonic() > deadline:
                self._give_up()
                break
            time.sleep(_POLL_SECS)
        return self._states

    def _pending(self) -> list[tuple[int, int]]:
        return [actor for actor, state in self._states.items() if state.state == "starting"]

    def _check_learners(self) -> None:
        windows = {window.name: window.exit_code for window in self._session.windows()}
        if LEARNERS not in windows:  # a window closes by itself only after a clean end
            self._answered = set(range(len(self._run.sets)))
            for actor in self._pending():
                self._states[actor] = ActorState("run ended")
        elif (code := windows[LEARNERS]) is not None:
            log = self._run.logs / f"{LEARNERS}.log"
            tail = "\n".join(f"    {line}" for line in _what_failed(log, self._begin))
            raise StartError(
                f"the learners failed with exit code {code}; everything was ended again; from "
                f"{log}:\n{tail}"
            )

    def _ask_learners(self) -> None:
        for one in endpoints.ask_all(self._run, timeout_secs=1.0):
            if one.status is None:
                continue
            self._answered.add(one.index)
            for actor in one.status["actors"]:
                key = (one.index, actor["task"])
                if key in self._states and actor["state"] != "gone":
                    self._states[key] = ActorState("welcomed")

    def _look_at_windows(self) -> None:
        """Finds the actors that are awaited in vain."""
        pending = self._pending()
        by_spec = {self._run.host_of(*actor).spec: self._run.host_of(*actor) for actor in pending}
        looks = self._hosts.on_all(
            by_spec, lambda spec: look(self._run, self._hosts, by_spec[spec])
        )
        for actor in pending:
            found = looks[self._run.host_of(*actor).spec]
            state = self._states[actor]
            if isinstance(found, HostError):
                state.reason = str(found)  # told if nothing better becomes known
                continue
            window = found.get(commands.actor_name(*actor))
            if window is None:
                continue  # it ended well: its learner has just told it to
            if window["exit_code"] is not None:
                words = f"ended at once with exit code {window['exit_code']}"
                self._states[actor] = ActorState("failed", words, window["tail"])
            elif window["restarts"] > 1:
                words = f"ends with exit code {window['last_exit']} and is started again and again"
                self._states[actor] = ActorState("failed", words, window["tail"])

    def _give_up(self) -> None:
        silent = set(range(len(self._run.sets))) - self._answered
        if silent:
            addresses = [self._run.sets[index].learner.address for index in sorted(silent)]
            raise StartError(
                f"no answer from the learner(s) at {', '.join(addresses)} within "
                f"--start_timeout={self._run.options.start_timeout:.0f} s; everything was ended "
                f"again; log: {self._run.logs / LEARNERS}.log"
            )
        for actor in self._pending():
            state = self._states[actor]
            words = f"no welcome within {self._run.options.start_timeout:.0f} s"
            self._states[actor] = ActorState("failed", state.reason or words)


def _what_failed(path: pathlib.Path, begin: int, count: int = 10) -> list[str]:
    """The end of a log, after the errors that mpirun's own words may have pushed up."""
    try:
        lines = path.read_bytes()[begin:].decode(errors="replace").splitlines()
    except OSError:
        return []
    errors = [line for line in lines[:-count] if "error: " in line.lower()]
    return [*errors[-3:], *lines[-count:]]
