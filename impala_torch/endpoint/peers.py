"""What an endpoint knows of each of its actors."""

import collections
import time
from collections.abc import Mapping
from typing import Any

from impala_torch.endpoint import messages
from impala_torch.endpoint.messages import Route

CREDIT_SECS = 30.0  # that an unroll may take to come, once it may be sent
MAX_CREDIT_SECS = 600.0  # the same of an actor whose unrolls took longer
FIRST_PAUSE_SECS = 30.0  # before another credit, after one in vain; each time twice as long
MAX_PAUSE_SECS = 600.0
ABSENT_SECS = 60.0  # an actor not heard of for this long counts as gone until it speaks again
MAX_HOST = 64  # characters of a host's name; no more on Linux
RATE_SECS = 15.0  # window of figures per second


class Window:
    """Counts as they were up to RATE_SECS ago, for figures per second."""

    def __init__(self, *counts: float) -> None:
        self._samples = collections.deque([(time.monotonic(), counts)])

    def add(self, *counts: float) -> None:
        now = time.monotonic()
        self._samples.append((now, counts))
        while len(self._samples) > 2 and self._samples[0][0] < now - RATE_SECS:
            self._samples.popleft()

    def rates(self, *counts: float) -> list[float]:
        """How much each count, now ``counts``, grew per second."""
        since, before = self._samples[0]
        secs = max(time.monotonic() - since, 1e-3)
        return [(now - then) / secs for now, then in zip(counts, before, strict=True)]


class Peer:
    """What the endpoint knows of one actor, or evaluator."""

    def __init__(self, route: Route, hello: dict[str, Any], key: str = "") -> None:
        self.route = route
        self.key = key
        self.task: int = messages.field(hello, "task", int, high=1 << 31)
        self.num_envs: int = messages.field(hello, "num_envs", int, 1, messages.MAX_ENVS)
        self.host: str = messages.cut(messages.field(hello, "host", str), MAX_HOST)
        self.pid: int = messages.field(hello, "pid", int)
        role = hello.get("role", "")
        if role not in ("", messages.EVALUATOR):
            raise messages.BadMessage("'hello' has a bad role")
        self.role: str = role
        self.granted_at: float | None = None  # holds credit since then
        self.credit_secs = CREDIT_SECS
        self.lapsed_since: float | None = None  # when a credit was given that was taken back
        self.lapses = 0  # credits in a row that no unroll came for
        self.pauses_until = 0.0  # gets no credit before
        self.left = False  # its connection is gone
        self.waiting_since: float | None = None  # for credit
        self.steps = 0
        self.episodes = 0
        self.waited = 0.0  # seconds, for credits and weights
        self.version: int | None = None  # of the weights that its last unroll was acted with
        self.last_seen = time.monotonic()
        self._window = Window(0, 0)

    def take_over(self, before: "Peer") -> None:
        """Goes on with the counts of the one whose task this is now."""
        self.steps, self.episodes, self.waited = before.steps, before.episodes, before.waited
        self.credit_secs = before.credit_secs
        self.lapses = before.lapses
        self._window = Window(self.steps, self.waited)

    def lapse(self, now: float) -> None:
        """No unroll came for its credit: the next one has to wait. Others need the room."""
        self.lapsed_since = self.granted_at
        pause = min(FIRST_PAUSE_SECS * 2**self.lapses, MAX_PAUSE_SECS)
        self.lapses, self.pauses_until = min(self.lapses + 1, 16), now + pause

    def count(self, steps: int, episodes: int, waited: float, version: int) -> None:
        self.steps += steps
        self.episodes += episodes
        self.waited += waited
        self.version = version
        self._window.add(self.steps, self.waited)

    @property
    def present(self) -> bool:
        return not self.left and time.monotonic() - self.last_seen < ABSENT_SECS

    def status(self, newest: int, published: Mapping[int, float]) -> dict[str, Any]:
        """
        Args:
          newest: the newest weights' version.
          published: when weights were published, by version.
        """
        now = time.monotonic()
        since = self.waiting_since
        waiting = 0.0 if since is None else now - since  # the actor will tell it, but later
        steps_per_sec, waiting_share = self._window.rates(self.steps, self.waited + waiting)
        at = None if self.version is None else published.get(self.version)
        return {
            "task": self.task,
            "host": self.host,
            "pid": self.pid,
            "num_envs": self.num_envs,
            "steps": self.steps,
            "steps_per_sec": round(steps_per_sec, 1),
            "waiting_share": round(min(waiting_share, 1.0), 3),
            "episodes": self.episodes,
            "lapses": self.lapses,
            "lag": None if self.version is None else newest - self.version,
            "weights_age_secs": None if at is None else round(now - at, 1),
            "last_seen_secs": round(now - self.last_seen, 1),
            "state": "gone" if not self.present else "acting" if since is None else "waiting",
            "relayed": bool(self.route[1]),
            "key": self.key,
        }
