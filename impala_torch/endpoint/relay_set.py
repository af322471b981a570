"""A relay's part for one worker set: its actors' messages, and the newest weights."""

import errno
import logging
import pathlib
import time
from typing import Any, NamedTuple

import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.messages import BadMessage
from impala_torch.flags.errors import UserError

log = logging.getLogger(__name__)

ASK_AGAIN_SECS = 5.0  # a pull that the learner did not answer for so long is lost
FORGET_SECS = 60.0  # nobody waits for weights so long: that actor is gone
MAX_AT_A_TIME = 64  # messages of one socket before the others get their turn


class Weights(NamedTuple):
    """What the learner sent last."""

    version: int
    flat: zmq.Frame


class Pull(NamedTuple):
    """A pull on its way to the learner, in the name of one of those who wait."""

    actor: bytes
    version: int  # that the relay had
    sent_at: float
    patience: float  # seconds until it counts as lost


class WorkerSet:
    """The actors of one worker set on this host, and the connection to their learner."""

    def __init__(
        self,
        context: zmq.Context,
        number: int,
        path: pathlib.Path,
        address: str,
        keys: curve.RunKeys | None,
    ) -> None:
        """
        Args:
          number: the worker set's.
          path: of the socket that actors connect to.
          address: ``ip:port`` of the learner.
          keys: of the run; None for an open endpoint.

        Raises:
          UserError: the path or the address cannot be used.
        """
        self.number = number
        self.path = path
        self._instance: Any = None  # of the learner whose weights these are
        self._weights: Weights | None = None
        self._pull: Pull | None = None
        # Who waits for weights: (the version it has, since when), first come first.
        self._waiting: dict[bytes, tuple[int, float]] = {}
        self.stopped = False  # the learner said so
        self.heard = time.monotonic()
        self.bytes_up = self.bytes_down = 0  # to and from the learner
        self.received = self.given = 0  # times that weights came, and that an actor got them

        self.learner = context.socket(zmq.DEALER)
        self.learner.linger = 2000
        # Nothing is kept for a learner that is not there: after a restart it would be a heap of
        # stale messages. What is under way to one that is there is bounded by its credits.
        self.learner.immediate = True
        self.learner.set_hwm(0)
        self.learner.reconnect_ivl = 100
        self.learner.reconnect_ivl_max = 2000
        self.learner.heartbeat_ivl = int(1000 * messages.HEARTBEAT_SECS)
        self.learner.heartbeat_timeout = int(1000 * messages.HEARTBEAT_TIMEOUT_SECS)
        if keys is not None:
            curve.secure_client(self.learner, keys)
        self.learner.connect(curve.zmq_address(address))
        self.actors = context.socket(zmq.ROUTER)
        self.actors.linger = 2000
        self.actors.router_mandatory = True  # the learner is told of an actor that is gone
        try:
            self.actors.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            raise UserError(f"{path} cannot be served: {error}") from error

    # --- from actors ---

    def serve_actors(self) -> None:
        for _ in range(MAX_AT_A_TIME):
            try:
                actor, *parts = self.actors.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            version = _pulled_version(parts[0])
            if version is not None:
                self._waiting[actor.bytes] = (version, time.monotonic())
                if self._pull is None:
                    self._ask()
            elif not self._to_learner(actor.bytes, parts):
                self._to_actor(actor.bytes, [self._no_connection()])

    def _to_learner(self, actor: bytes, parts: list) -> bool:
        """Sends, unless there is no connection."""
        frames = [*messages.wrap(actor), *parts]
        try:
            self.learner.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self.bytes_up += sum(len(frame) for frame in frames)
        return True

    def _ask(self, patience: float = ASK_AGAIN_SECS) -> None:
        """Pulls in the name of the first of those who wait, if there are any."""
        self._pull = None
        if not self._waiting:
            return
        actor = next(iter(self._waiting))
        version = -1 if self._weights is None else self._weights.version
        sent = self._to_learner(actor, [messages.encode("pull", version=version)])
        if sent:
            self._pull = Pull(actor, version, time.monotonic(), patience)
        else:
            self._answer_waiting([self._no_connection()])

    def _no_connection(self) -> bytes:
        """What the learner would say: over a new connection, nobody has said hello.

        A learner that left after its stop says nothing any more; late actors hear it here.
        """
        return messages.encode("stop" if self.stopped else "unknown")

    def _answer_waiting(self, parts: list) -> None:
        for actor in self._waiting:
            self._to_actor(actor, parts)
        self._waiting.clear()
        self._pull = None

    def check_pull(self) -> None:
        """Asks again, in another's name, what was not answered: its actor may be banned."""
        now = time.monotonic()
        if self._pull is None or now - self._pull.sent_at < self._pull.patience:
            return
        asked = self._waiting.pop(self._pull.actor, None)
        if asked is not None:
            self._waiting[self._pull.actor] = asked
        self._waiting = {
            actor: (version, since)
            for actor, (version, since) in self._waiting.items()
            if now - since < FORGET_SECS
        }
        # Ever more patient: on a slow network the answer may just be under way, and large.
        self._ask(2 * self._pull.patience)

    # --- from the learner ---

    def serve_learner(self) -> None:
        for _ in range(MAX_AT_A_TIME):
            try:
                frames = self.learner.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.heard = time.monotonic()
            self.bytes_down += sum(len(frame) for frame in frames)
            try:
                actor, _ = messages.unwrap([frame.buffer for frame in frames])
                header = messages.decode((frames[2] if actor else frames[0]).buffer)
                if not actor:  # nobody asked: it does not take relayed messages
                    raise BadMessage(messages.quoted(header))
                self._from_learner(actor, header, frames[2:])
            except BadMessage as error:
                log.warning("set %d: its learner sent a bad message: %s", self.number, error)

    def _from_learner(self, actor: bytes, header: dict[str, Any], parts: list[zmq.Frame]) -> None:
        kind = header["type"]
        if kind == "weights":
            self._take_weights(header, parts)
            return
        if kind == "same":
            self._confirm_weights()
            return
        self._to_actor(actor, parts)
        if kind == "welcome":
            self.stopped = False
            if header.get("instance") != self._instance:
                # Another learner's versions are other weights, whatever their number.
                self._instance = header.get("instance")
                self._weights = None
        elif kind == "unknown":
            self._weights = None  # it may be another learner, or the same after a break
        elif kind == "stop":
            self.stopped = True
            self._answer_waiting(parts)
        if kind in ("unknown", "refused"):
            self._waiting.pop(actor, None)
            if self._pull is not None and self._pull.actor == actor:
                self._ask()

    def _take_weights(self, header: dict[str, Any], parts: list[zmq.Frame]) -> None:
        if header.get("instance") != self._instance or len(parts) != 2:
            return  # of a learner that is gone
        self._weights = Weights(messages.field(header, "version", int), parts[1])
        self.received += 1
        self._answer()

    def _confirm_weights(self) -> None:
        version = -1 if self._weights is None else self._weights.version
        if self._pull is not None and self._pull.version != version:
            self._ask()  # the weights that it confirms were dropped in the meantime
        else:
            self._answer()

    def _answer(self) -> None:
        """Gives those who wait the weights, or says that theirs are the newest."""
        same = [messages.encode("same")]
        newer: list[Any] = same
        if self._weights is not None:
            header = messages.encode("weights", version=self._weights.version)
            newer = [header, self._weights.flat]
        for actor, (version, _) in self._waiting.items():
            # Not "older than": a restarted learner counts on from its checkpoint.
            has_it = self._weights is None or version == self._weights.version
            self.given += not has_it
            self._to_actor(actor, same if has_it else newer)
        self._waiting.clear()
        self._pull = None

    def _to_actor(self, actor: bytes, parts: list) -> None:
        # It never blocks: an actor that does not read loses what does not fit.
        try:
            self.actors.send_multipart([actor, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            pass
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            # The learner may keep room for it, and cannot see that it has left.
            self._to_learner(actor, [messages.encode("gone")])

    # --- the rest ---

    def __str__(self) -> str:
        version = "none" if self._weights is None else self._weights.version
        return (
            f"set {self.number}: weights {version}, {self.bytes_up / 1e6:.1f} MB up, "
            f"{self.bytes_down / 1e6:.1f} MB down, {self.given} times "
            f"weights to actors for {self.received} from the learner"
        )

    def close(self) -> None:
        self.learner.close()
        self.actors.close()
        self.path.unlink(missing_ok=True)


def _pulled_version(header: zmq.Frame) -> int | None:
    """The version that a pull names; None for any other message, a bad one too."""
    try:
        fields = messages.decode(header.buffer)
        return messages.field(fields, "version", int, -1) if fields["type"] == "pull" else None
    except BadMessage:
        return None  # the learner tells its actor
