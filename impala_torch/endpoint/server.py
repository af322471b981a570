"""The learner's side of the parameter endpoint: one thread that owns a ROUTER socket.

The learner publishes weights (``publish``) and takes batches from ``batches``; this thread
answers the actors and keeps the count of who is there.
"""

import collections
import os
import threading
import time
from typing import Any

import numpy as np
import zmq

from impala_torch.config import UserError
from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.batches import BatchQueue
from impala_torch.endpoint.messages import BadMessage, RunSpec, UnrollCodec
from impala_torch.structures import EpisodeResult

CREDIT_SECS = 30.0  # an actor that was granted credit sends at once, or it is gone
ABSENT_SECS = 60.0  # an actor not heard of for this long counts as gone until it speaks again
MAX_BANNED = 10_000  # senders remembered
LATE_SECS = 10.0  # how long a closing endpoint waits for actors that have not come yet
RATE_SECS = 15.0  # window of the actors' steps per second


class Peer:
    """What the endpoint knows of one actor."""

    def __init__(self, identity: bytes, hello: dict[str, Any]) -> None:
        self.identity = identity
        self.task: int = messages.field(hello, "task", int, high=1 << 31)
        self.num_envs: int = messages.field(hello, "num_envs", int, 1, messages.MAX_ENVS)
        self.host: str = messages.field(hello, "host", str)[:255]
        self.pid: int = messages.field(hello, "pid", int)
        self.granted_at: float | None = None  # holds credit since then
        self.waiting = False
        self.steps = 0
        self.episodes = 0
        self.last_seen = time.monotonic()
        self._recent: collections.deque[tuple[float, int]] = collections.deque(
            [(self.last_seen, 0)]
        )

    def count(self, steps: int, episodes: int) -> None:
        now = time.monotonic()
        self.steps += steps
        self.episodes += episodes
        self._recent.append((now, self.steps))
        while len(self._recent) > 2 and self._recent[0][0] < now - RATE_SECS:
            self._recent.popleft()

    @property
    def present(self) -> bool:
        return time.monotonic() - self.last_seen < ABSENT_SECS

    def status(self) -> dict[str, Any]:
        now = time.monotonic()
        since, steps = self._recent[0]
        return {
            "task": self.task,
            "host": self.host,
            "pid": self.pid,
            "num_envs": self.num_envs,
            "steps": self.steps,
            "steps_per_sec": round((self.steps - steps) / max(now - since, 1e-3), 1),
            "episodes": self.episodes,
            "last_seen_secs": round(now - self.last_seen, 1),
            "state": "gone" if not self.present else "waiting" if self.waiting else "acting",
        }


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
          worker_set: this learner's number, from which actors derive their seeds.
          run_id: names the run in the welcome.
          keys: of the run; None leaves the endpoint open.

        Raises:
          UserError: the address cannot be bound.
        """
        self.spec = spec
        self._layout = layout
        self._batches = batches
        self._num_actors = num_actors
        self._worker_set = worker_set
        self._run_id = run_id
        self._codec = UnrollCodec(spec)
        self._weights: tuple[int, memoryview] | None = None
        self._peers: dict[bytes, Peer] = {}
        self._by_task: dict[int, Peer] = {}
        self._banned: dict[bytes, None] = {}  # senders of bad messages, oldest first
        self._told_late: set[int] = set()  # tasks that came when the endpoint was closing
        self._queue: collections.deque[Peer] = collections.deque()  # wait for credit, in order
        self._late_bad: collections.deque[tuple[bytes, str]] = collections.deque()
        self.bad_messages = 0
        self.last_bad = ""
        self.bytes_received = 0
        self.episodes: collections.deque[EpisodeResult] = collections.deque(maxlen=100_000)
        self.learner_status: dict[str, Any] = {}  # replaced whole by the learner
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
            raise UserError(f"--learner_host={address} cannot be served: {error}") from error
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        batches.on_room = self._notify
        batches.on_bad = self._report_bad
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    # --- for the learner's thread ---

    def publish(self, version: int, flat: np.ndarray) -> None:
        """Makes ``flat`` (float32, not to be written to any more) what actors get from now on."""
        self._weights = (version, flat.data.cast("B"))
        self._batches.version = version

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
        return {
            **self.learner_status,
            "worker_set": self._worker_set,
            "run_id": self._run_id,
            "queue_batches": self._batches.depth,
            "dropped_unrolls": self._batches.dropped,
            "bad_messages": self.bad_messages,
            "denied_connections": denied,
            "bytes_received": self.bytes_received,
            "actors": [peer.status() for peer in peers],
        }

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

    def _report_bad(self, sender: bytes, reason: str) -> None:
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
        deadline = None
        while deadline is None or time.monotonic() < deadline + self._lateness():
            ready = dict(poller.poll(timeout=1000 if deadline is None else 50))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._authenticator and self._authenticator.socket in ready:
                self._authenticator.handle()
            if self._socket in ready:
                self._receive()
            while self._late_bad:
                self._refuse_bad(*self._late_bad.popleft())
            if self._closing.is_set():
                if deadline is None:
                    deadline = time.monotonic() + self._grace_secs
                    for identity in self._peers:
                        self._send(identity, "stop")
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
            identity, *frames = (part.buffer for part in parts)
            sender = bytes(identity)
            if sender in self._banned:
                continue
            self.bytes_received += sum(len(frame) for frame in frames)
            try:
                if not frames:
                    raise BadMessage("empty message")
                self._handle(sender, messages.decode(frames[0]), frames[1:])
            except BadMessage as error:
                self._refuse_bad(sender, str(error))

    def _handle(self, sender: bytes, header: dict[str, Any], buffers: list[memoryview]) -> None:
        kind = header["type"]
        if kind == "status":
            self._send(sender, "status", status=self.status())
            return
        if self._closing.is_set():
            self._send(sender, "stop")
            if kind == "hello":
                self._told_late.add(messages.field(header, "task", int))
            return
        if kind == "hello":
            self._hello(sender, header)
            return
        peer = self._peers.get(sender)
        if peer is None:
            self._send(sender, "unknown")
            return
        peer.last_seen = time.monotonic()
        if kind == "pull":
            self._pull(peer, messages.field(header, "version", int, low=-1))
        elif kind == "ready":
            self._ready(peer)
        elif kind == "unroll":
            self._unroll(peer, header, buffers)
        else:
            raise BadMessage(f"unknown type '{kind[:40]}'")

    def _hello(self, sender: bytes, header: dict[str, Any]) -> None:
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
        peer = Peer(sender, header)
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
            if before.identity != sender:
                reason = f"another process on {peer.host} took the place of --task={peer.task}"
                self._send(before.identity, "refused", reason=reason)
            peer.steps, peer.episodes = before.steps, before.episodes
            peer.count(0, 0)
        self._peers[sender] = self._by_task[peer.task] = peer
        self._send(
            sender,
            "welcome",
            worker_set=self._worker_set,
            run_id=self._run_id,
            layout=self._layout,
        )

    def _pull(self, peer: Peer, version: int) -> None:
        if self._weights is None or self._weights[0] == version:
            self._send(peer.identity, "same")
            return
        newest, flat = self._weights
        self._send(peer.identity, "weights", flat, version=newest)

    def _ready(self, peer: Peer) -> None:
        if peer.granted_at is not None:
            self._send(peer.identity, "credit")
            return
        if not peer.waiting:
            peer.waiting = True
            self._queue.append(peer)
        self._grant()
        if peer.waiting:
            self._send(peer.identity, "wait")

    def _unroll(self, peer: Peer, header: dict[str, Any], buffers: list[memoryview]) -> None:
        if peer.granted_at is None:
            raise BadMessage("unroll without credit")
        version = self._weights[0] if self._weights else 0
        unroll = self._codec.decode_fields(buffers, peer.num_envs, version)
        episodes = messages.decode_episodes(header)
        peer.granted_at = None
        peer.count(self.spec.unroll_length * peer.num_envs, len(episodes))
        self.episodes.extend(episodes)
        self._batches.put(peer.identity, unroll, peer.num_envs)

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
            peer.waiting = False
            peer.granted_at = now
            self._send(peer.identity, "credit")

    def _forget(self, peer: Peer) -> None:
        self._peers.pop(peer.identity, None)
        if peer.waiting:
            self._queue.remove(peer)
            peer.waiting = False
        if peer.granted_at is not None:
            peer.granted_at = None
            self._batches.release(peer.num_envs)

    def _refuse_bad(self, sender: bytes, reason: str) -> None:
        self.bad_messages += 1
        self.last_bad = reason
        self._send(sender, "refused", reason=f"bad message: {reason}")
        self._banned[sender] = None
        if len(self._banned) > MAX_BANNED:
            del self._banned[next(iter(self._banned))]
        peer = self._peers.get(sender)
        if peer is not None:
            self._forget(peer)
            self._by_task.pop(peer.task, None)

    def _send(self, identity: bytes, kind: str, *buffers: memoryview, **fields: Any) -> None:
        # A ROUTER drops what is for a peer that left; it never blocks.
        parts: list[Any] = [identity, messages.encode(kind, **fields), *buffers]
        self._socket.send_multipart(parts, copy=False)
