"""The learner's side of the parameter endpoint: one thread that owns a ROUTER socket.

The learner publishes weights (``publish``) and takes batches from ``batches``; this thread
answers the actors and keeps the count of who is there.
"""

import collections
import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.batches import BatchQueue
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.messages import BadMessage, Route
from impala_torch.endpoint.peers import Peer, Window
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.flags.errors import UserError
from impala_torch.structures import EpisodeResult

CREDIT_SECS = 30.0  # an actor that was granted credit sends at once, or it is gone
MAX_BANNED = 10_000  # senders remembered
LATE_SECS = 10.0  # how long a closing endpoint waits for actors that have not come yet
MAX_EVALUATORS = 16  # that are known at a time; the oldest says hello again
MAX_PUBLISHED = 4096  # versions whose time of publishing is remembered


class EndpointServer:
    """Serves a worker set's actors at ``address`` until ``close``."""

    def __init__(
        self,
        address: str,
        spec: RunSpec,
        layout: list,
        batches: BatchQueue,
        *,
        num_actors: int,
        weights_dtype: str = "float32",
        worker_set: int = 0,
        run_id: str = "",
        keys: curve.RunKeys | None = None,
    ) -> None:
        """
        Args:
          address: ``ip:port`` to bind.
          spec: what actors must agree with.
          layout: of the flat weights, told to actors in the welcome.
          batches: where unrolls go.
          num_actors: length of --actor_hosts; a hello of another task is refused.
          weights_dtype: of the flat weights, told to actors in the welcome.
          worker_set: this learner's number, from which actors derive their seeds.
          run_id: names the run in the welcome.
          keys: of the run; None leaves the endpoint open.

        Raises:
          UserError: the address cannot be bound.
        """
        self.spec = spec
        self._layout, self._weights_dtype = layout, weights_dtype
        self._batches = batches
        self._num_actors = num_actors
        self._worker_set = worker_set
        self._run_id = run_id
        self._codec = UnrollCodec(spec)
        self._weights: tuple[int, memoryview, int] | None = None  # version, bytes, frames
        self._instance = secrets.token_hex(8)
        self._published: dict[int, float] = {}  # when, by version; oldest first
        self._peers: dict[Route, Peer] = {}
        self._by_task: dict[int, Peer] = {}
        self._evaluators: collections.deque[Peer] = collections.deque()  # oldest first
        self._banned: dict[Route, None] = {}  # senders of bad messages, oldest first
        self._told_late: set[int] = set()  # tasks that came when the endpoint was closing
        self._queue: collections.deque[Peer] = collections.deque()  # wait for credit, in order
        self._late_bad: collections.deque[tuple[Route, str]] = collections.deque()
        self.bad_messages = 0
        self.last_bad = ""
        self.bytes_received = 0
        self.weights_sent = 0
        self._window = Window(0, 0, 0)  # bytes received, unrolls given and received
        self._host = socket.gethostname()
        # With the newest weights' version when they were told.
        self._episodes: collections.deque[tuple[int, EpisodeResult]] = collections.deque(
            maxlen=100_000
        )
        self.learner_status = {}
        self.standing: Callable[[], dict[str, Any]] = dict  # more of the learner, as it is now
        self.error: BaseException | None = None

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 2000
        self._authenticator = None
        if keys is not None:
            self._authenticator = curve.Authenticator(self._context, keys)
            curve.secure_server(self._socket, keys)
        try:
            self._socket.bind(curve.zmq_address(address))
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            words = f"--learner_host={address} cannot be served"
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"{words}: it is no address of this host, {socket.gethostname()}; a learner "
                    "must be started on the host that its row names"
                ) from error
            raise UserError(f"{words}: {error}") from error
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        batches.on_room = self._notify
        batches.on_bad = self._report_bad
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    # --- for the learner's thread ---

    def publish(self, version: int, flat: np.ndarray, frames: int = 0) -> None:
        """Makes ``flat`` (not to be written to any more) what actors get from now on.

        Args:
          version: updates behind these weights.
          flat: their bytes.
          frames: environment frames behind them.
        """
        self._published[version] = time.monotonic()
        if len(self._published) > MAX_PUBLISHED:
            del self._published[next(iter(self._published))]
        self._weights = (version, flat.data.cast("B"), frames)
        self._batches.version = version

    def take_episodes(self) -> list[tuple[int, EpisodeResult]]:
        """Those told since the last call, each with the updates behind the weights of then."""
        return [self._episodes.popleft() for _ in range(len(self._episodes))]

    @property
    def learner_status(self) -> dict[str, Any]:
        """The learner's figures; replaced whole by it."""
        return self._learner_status

    @learner_status.setter
    def learner_status(self, figures: dict[str, Any]) -> None:
        self._learner_status, self._figured = figures, time.monotonic()

    @property
    def num_connected(self) -> int:
        """Actors heard of lately."""
        return sum(peer.present for peer in list(self._by_task.values()))

    def missing_tasks(self) -> list[int]:
        """Tasks of --actor_hosts that are not connected."""
        here = {task for task, peer in list(self._by_task.items()) if peer.present}
        return [task for task in range(self._num_actors) if task not in here]

    def status(self) -> dict[str, Any]:
        """The endpoint's numbers: plain values, ready for JSON."""
        peers = sorted(self._by_task.values(), key=lambda peer: peer.task)
        denied = self._authenticator.denied if self._authenticator else 0
        bytes_per_sec, given, received = self._window.rates(*self._counts())
        newest = self._version
        return {
            **self.learner_status,
            # By this clock alone: whoever asks may have another.
            "figures_age_secs": round(time.monotonic() - self._figured, 1),
            **self.standing(),
            "worker_set": self._worker_set,
            "run_id": self._run_id,
            "host": self._host,
            "pid": os.getpid(),
            "num_actors": self._num_actors,
            "queue_batches": round(self._batches.depth, 2),
            "dropped_unrolls": self._batches.dropped,
            "given_unrolls": self._batches.given,
            "received_unrolls": self._batches.received,
            "given_per_sec": round(given, 1),
            "received_per_sec": round(received, 1),
            "bad_messages": self.bad_messages,
            "last_bad": self.last_bad,
            "denied_connections": denied,
            "bytes_received": self.bytes_received,
            "bytes_per_sec": round(bytes_per_sec),
            "weights_sent": self.weights_sent,
            "actors": [peer.status(newest, self._published) for peer in peers],
        }

    def _counts(self) -> tuple[int, int, int]:
        return self.bytes_received, self._batches.given, self._batches.received

    @property
    def _version(self) -> int:
        return self._weights[0] if self._weights else 0

    def close(self, grace_secs: float = 1.0) -> None:
        """Tells every actor to stop and ends, ``grace_secs`` later or a while more.

        Actors that are still starting would wait for a learner that never comes back: those of
        --actor_hosts that were never here are waited for, up to LATE_SECS.
        """
        self._grace_secs = grace_secs
        self._closing.set()
        self._notify()
        self._thread.join()
        os.close(self._wake)

    # --- the endpoint's thread ---

    def _notify(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _report_bad(self, sender: Route, reason: str) -> None:
        self._late_bad.append((sender, reason))
        self._notify()

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # the learner looks at it before each update
            self.error = error
        finally:
            self._socket.close()
            if self._authenticator:
                self._authenticator.close()
            self._context.term()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        if self._authenticator:
            poller.register(self._authenticator.socket, zmq.POLLIN)
        deadline, sampled = None, time.monotonic()
        while deadline is None or time.monotonic() < deadline + self._lateness():
            ready = dict(poller.poll(timeout=1000 if deadline is None else 50))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._authenticator and self._authenticator.socket in ready:
                self._authenticator.handle()
            if self._socket in ready:
                self._receive()
            if time.monotonic() - sampled > 1:
                sampled = time.monotonic()
                self._window.add(*self._counts())
            while self._late_bad:
                self._refuse_bad(*self._late_bad.popleft())
            if self._closing.is_set():
                if deadline is None:
                    deadline = time.monotonic() + self._grace_secs
                    for route in self._peers:
                        self._send(route, "stop")
            else:
                self._grant()

    def _lateness(self) -> float:
        """How much longer to wait for actors that were never here, in seconds."""
        told = self._by_task.keys() | self._told_late
        return 0.0 if all(task in told for task in range(self._num_actors)) else LATE_SECS

    def _receive(self) -> None:
        # At most so many at a time, so that a flood does not keep others' credit waiting.
        for _ in range(64):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            sender: Route = (parts[0].bytes, b"")
            if sender in self._banned:
                continue
            self.bytes_received += sum(len(part) for part in parts[1:])
            try:
                actor_id, frames = messages.unwrap([part.buffer for part in parts[1:]])
                sender = (sender[0], actor_id)
                if sender not in self._banned:
                    self._handle(sender, messages.decode(frames[0]), frames[1:], parts[-1])
            except BadMessage as error:
                self._refuse_bad(sender, str(error))

    def _handle(
        self, sender: Route, header: dict[str, Any], buffers: list[memoryview], frame: zmq.Frame
    ) -> None:
        kind = header["type"]
        if kind == "status":
            self._send(sender, "status", status=self.status())
            return
        if self._closing.is_set():
            self._send(sender, "stop")
            if kind == "hello" and header.get("role") != messages.EVALUATOR:
                self._told_late.add(messages.field(header, "task", int))
            return
        if kind == "hello":
            self._hello(sender, header, _key_of(frame))
            return
        peer = self._peers.get(sender)
        if peer is None:
            self._send(sender, "unknown")
            return
        peer.last_seen = time.monotonic()
        if kind == "pull":
            self._pull(peer, messages.field(header, "version", int, low=-1))
        elif peer.role == messages.EVALUATOR:
            raise BadMessage(f"'{kind[:40]}' of an evaluator")
        elif kind == "ready":
            self._ready(peer)
        elif kind == "unroll":
            self._unroll(peer, header, buffers)
        else:
            raise BadMessage(f"unknown type '{kind[:40]}'")

    def _hello(self, sender: Route, header: dict[str, Any], key: str) -> None:
        if header.get("protocol") != messages.PROTOCOL:
            reason = (
                f"it speaks version {header.get('protocol')} of the protocol, the learner "
                f"{messages.PROTOCOL}: use the same code on both"
            )
            self._send(sender, "refused", reason=reason)
            return
        if difference := self.spec.difference(header.get("spec")):
            self._send(sender, "refused", reason=f"{difference}: give both the same flags")
            return
        peer = Peer(sender, header, key)
        if peer.role == messages.EVALUATOR:
            self._admit_evaluator(peer)
            self._welcome(peer)
            return
        if peer.task >= self._num_actors:
            reason = (
                f"--task={peer.task} is outside the learner's --actor_hosts, which names "
                f"{self._num_actors} actor(s)"
            )
            self._send(sender, "refused", reason=reason)
            return
        before = self._by_task.get(peer.task)
        if before is not None:
            self._forget(before)
            if before.route != sender:
                reason = f"another process on {peer.host} took the place of --task={peer.task}"
                self._send(before.route, "refused", reason=reason)
            peer.take_over(before)
        self._peers[sender] = self._by_task[peer.task] = peer
        self._welcome(peer)

    def _admit_evaluator(self, peer: Peer) -> None:
        before = self._peers.get(peer.route)
        if before is not None:
            self._drop(before)
        self._peers[peer.route] = peer
        self._evaluators.append(peer)
        if len(self._evaluators) > MAX_EVALUATORS:
            oldest = self._evaluators.popleft()
            if self._peers.get(oldest.route) is oldest:
                del self._peers[oldest.route]

    def _welcome(self, peer: Peer) -> None:
        self._send(
            peer.route,
            "welcome",
            worker_set=self._worker_set,
            run_id=self._run_id,
            instance=self._instance,
            layout=self._layout,
            dtype=self._weights_dtype,
        )

    def _pull(self, peer: Peer, version: int) -> None:
        if self._weights is None or self._weights[0] == version:
            self._send(peer.route, "same")
            return
        newest, flat, frames = self._weights
        self.weights_sent += 1
        self._send(
            peer.route, "weights", flat, version=newest, instance=self._instance, frames=frames
        )

    def _ready(self, peer: Peer) -> None:
        if peer.granted_at is not None:
            self._send(peer.route, "credit")
            return
        if peer.waiting_since is None:
            peer.waiting_since = time.monotonic()
            self._queue.append(peer)
        self._grant()
        if peer.waiting_since is not None:
            self._send(peer.route, "wait")

    def _unroll(self, peer: Peer, header: dict[str, Any], buffers: list[memoryview]) -> None:
        if peer.granted_at is None:
            raise BadMessage("unroll without credit")
        unroll = self._codec.decode_fields(buffers, peer.num_envs, self._version)
        episodes = messages.decode_episodes(header)
        waited = messages.decode_waited(header)
        peer.granted_at = None
        acted_with = int(unroll.fields["weights_version"].min())
        peer.count(self.spec.unroll_length * peer.num_envs, len(episodes), waited, acted_with)
        self._episodes.extend((self._version, episode) for episode in episodes)
        self._batches.put(peer.route, unroll, peer.num_envs)

    def _grant(self) -> None:
        """Gives credit to those who wait, first come first served, while there is room."""
        now = time.monotonic()
        for peer in self._peers.values():
            if peer.granted_at is not None and now - peer.granted_at > CREDIT_SECS:
                peer.granted_at = None
                self._batches.release(peer.num_envs)
        while self._queue:
            peer = self._queue[0]
            if not self._batches.reserve(peer.num_envs):
                return
            self._queue.popleft()
            peer.waiting_since = None
            peer.granted_at = now
            self._send(peer.route, "credit")
        self._batches.wanted = 0

    def _forget(self, peer: Peer) -> None:
        self._peers.pop(peer.route, None)
        if peer.waiting_since is not None:
            self._queue.remove(peer)
            peer.waiting_since = None
        if peer.granted_at is not None:
            peer.granted_at = None
            self._batches.release(peer.num_envs)

    def _drop(self, peer: Peer) -> None:
        """Forgets a peer, and that its task is taken."""
        self._forget(peer)
        if self._by_task.get(peer.task) is peer:
            del self._by_task[peer.task]

    def _refuse_bad(self, sender: Route, reason: str) -> None:
        self.bad_messages += 1
        self.last_bad = reason
        self._send(sender, "refused", reason=f"bad message: {reason}", banned=True)
        self._banned[sender] = None
        if len(self._banned) > MAX_BANNED:
            del self._banned[next(iter(self._banned))]
        peer = self._peers.get(sender)
        if peer is not None:
            self._drop(peer)

    def _send(self, route: Route, kind: str, *buffers: memoryview, **fields: Any) -> None:
        # A ROUTER drops what is for a peer that left; it never blocks.
        identity, actor_id = route
        header = messages.encode(kind, **fields)
        parts: list[Any] = [identity, *messages.wrap(actor_id), header, *buffers]
        self._socket.send_multipart(parts, copy=False)


def _key_of(frame: zmq.Frame) -> str:
    """The name of the key that its connection was admitted with; empty where there is none."""
    try:
        return str(frame.get("User-Id") or "")
    except zmq.ZMQError:
        return ""
