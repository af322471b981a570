"""The learner's side of the parameter endpoint: one thread that owns a ROUTER socket.

The learner publishes weights (``publish``) and takes batches from ``batches``; this thread
answers the actors and keeps the count of who is there.

Whatever one peer does or sends costs that peer alone. A message that cannot be handled, for
whatever reason, has its sender refused. Nothing waits for a peer: what does not fit into its
connection is lost to it, one whose connection is gone is forgotten with the room that it held,
and of what it does not read no more than one large answer is kept. What can arrive is bounded
before there is any trust: see ``_bounded``.
"""

import collections
import errno
import logging
import math
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import local_sockets, messages
from impala_torch.endpoint.batches import BatchQueue
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.messages import BadMessage, Route
from impala_torch.endpoint.peers import MAX_CREDIT_SECS, Peer, Window
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.flags.addresses import is_ipc
from impala_torch.flags.errors import UserError
from impala_torch.structures import EpisodeResult

log = logging.getLogger(__name__)

REFUSED_SECS = 10.0  # between words on peers that are refused
SILENT_SECS = 15.0  # one that waits for credit asks again twice in this time, or it is gone
LOOK_SECS = 1.0  # between two looks whether those who hold credit are still there
OWED_SECS = 0.02  # between two looks whether what was kept back can be sent
HANDSHAKE_SECS = 10.0  # a connection that has said nothing sensible for so long is closed
MAX_UNHEARD = 64  # messages of a connection that are read ahead; more wait at their sender
CURVE_BYTES = 1024  # at most, that encryption adds to a frame
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
        frames: int = 0,
        keys: curve.RunKeys | None = None,
    ) -> None:
        """
        Args:
          address: to bind: ``ip:port``, or ``ipc://`` and a path.
          spec: what actors must agree with.
          layout: of the flat weights, told to actors in the welcome.
          batches: where unrolls go.
          num_actors: length of --actor_hosts; a hello of another task is refused.
          weights_dtype: of the flat weights, told to actors in the welcome.
          worker_set: this learner's number, from which actors derive their seeds.
          run_id: names the run in the welcome.
          frames: that the run was trained for before this start.
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
        self._frames_before = frames
        self._processes: collections.Counter[int] = collections.Counter()  # that came, by task
        self._told_late: set[int] = set()  # tasks that came when the endpoint was closing
        self._refused, self._told_refused = 0, -math.inf  # peers, and when that was said
        self._queue: collections.deque[Peer] = collections.deque()  # wait for credit, in order
        self._late_bad: collections.deque[tuple[Route, str]] = collections.deque()
        # By connection: the large answer that was sent last, and who waits for the next: the
        # route, and the version of its weights, or None where it asked for the status.
        self._large: dict[bytes, zmq.MessageTracker] = {}
        self._owed: dict[bytes, tuple[Route, int | None]] = {}
        self._surprises: set[str] = set()  # kinds of errors, told once each
        self.bad_messages = 0
        self.late_unrolls = 0  # that came after their credit had been taken back
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
        _bounded(self._socket, self._codec.largest_frame())
        self._keys = keys
        self._path: pathlib.Path | None = None  # of the socket, where it is one of this machine
        self._authenticator = None
        if keys is not None:
            self._authenticator = curve.Authenticator(self._context, keys)
            curve.secure_server(self._socket, keys)
        try:
            if is_ipc(address):
                self._path = local_sockets.free_path(local_sockets.path_of(address), "learner")
            elif keys is None:
                log.warning(
                    "the endpoint at %s is open to all users of this machine; with --key_file it "
                    "is not",
                    address,
                )
            self._socket.bind(curve.zmq_address(address))
        except UserError:
            self._context.destroy(linger=0)
            raise
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

    def silent_processes(self) -> set[int]:
        """Ids of the actors' processes that were welcomed and are not heard of any more."""
        now = time.monotonic()
        peers = list(self._by_task.values())
        return {peer.pid for peer in peers if now - peer.last_seen > SILENT_SECS}

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
            "late_unrolls": self.late_unrolls,
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
            if self._path is not None:
                self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        if self._authenticator:
            poller.register(self._authenticator.socket, zmq.POLLIN)
        deadline = None
        sampled = looked = paid = time.monotonic()
        while deadline is None or time.monotonic() < deadline + self._lateness():
            ready = dict(poller.poll(timeout=self._patience_ms(deadline is not None)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._authenticator and self._authenticator.socket in ready:
                self._authenticator.handle()
            if self._socket in ready:
                self._receive()
            now = time.monotonic()
            if now - sampled > 1:
                sampled = now
                self._window.add(*self._counts())
            if now - looked > LOOK_SECS:
                looked = now
                self._look_who_is_there(now)
            if self._owed and now - paid > OWED_SECS:
                paid = now
                self._pay()
            while self._late_bad:
                self._refuse_bad(*self._late_bad.popleft())
            if self._closing.is_set():
                if deadline is None:
                    deadline = time.monotonic() + self._grace_secs
                    for route in list(self._peers):
                        self._send(route, "stop")
            else:
                self._grant()

    def _patience_ms(self, closing: bool) -> int:
        if self._owed:
            return int(1000 * OWED_SECS)
        return 50 if closing else int(1000 * LOOK_SECS)

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
            except zmq.ZMQError:
                raise  # the socket's own, which no message can cause
            except Exception as error:  # it has no right to happen; the run is worth more
                kind = type(error).__name__
                if kind not in self._surprises:
                    self._surprises.add(kind)
                    log.exception("a message that cannot be handled; its sender is refused")
                self._refuse_bad(sender, f"it cannot be handled ({kind})")

    def _handle(
        self, sender: Route, header: dict[str, Any], buffers: list[memoryview], frame: zmq.Frame
    ) -> None:
        kind = header["type"]
        if kind == "status":
            self._answer(sender, None)
            return
        if kind == "gone":  # never answered: the answer would find nobody, and so on
            if sender in self._peers:
                self._leave(self._peers[sender])
            return
        if self._closing.is_set():
            self._send(sender, "stop")
            if kind == "hello" and header.get("role") != messages.EVALUATOR:
                task = messages.field(header, "task", int)
                if task < self._num_actors:
                    self._told_late.add(task)
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
            self._answer(sender, messages.field(header, "version", int, low=-1))
        elif kind == "alive":
            pass  # that it was heard of is all
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
            theirs = messages.quoted(header.get("protocol"))
            self._refuse(
                sender,
                f"it speaks version {theirs} of the protocol, the learner {messages.PROTOCOL}: "
                "use the same code on both",
            )
            return
        if difference := self.spec.difference(header.get("spec")):
            self._refuse(sender, f"{messages.cut(difference, 150)}: give both the same flags")
            return
        peer = Peer(sender, header, key)
        if peer.role != messages.EVALUATOR and (reason := self._wrong_task(peer)):
            self._refuse(sender, reason)
            return
        # A route is one peer: what it was before, under another task perhaps, it is no more.
        before = self._peers.get(sender)
        if before is not None and (peer.role or before.role or before.task != peer.task):
            self._drop(before)
        if peer.role == messages.EVALUATOR:
            self._admit_evaluator(peer)
        else:
            self._admit(peer)
        self._welcome(peer)

    def _wrong_task(self, peer: Peer) -> str:
        """Why an actor may not have the task that it names; empty if it may."""
        if peer.task >= self._num_actors:
            return (
                f"--task={peer.task} is outside the learner's --actor_hosts, which names "
                f"{self._num_actors} actor(s)"
            )
        if self._keys is not None and not self._keys.may_act(peer.key, self._worker_set, peer.task):
            return (
                f"--task={peer.task} of worker set {self._worker_set} is not of the key "
                f"'{messages.cut(peer.key, 64)}': start the actor on the host that its row names"
            )
        return ""

    def _admit(self, peer: Peer) -> None:
        before = self._by_task.get(peer.task)
        if before is not None:
            self._forget(before)
            if before.route != peer.route:
                reason = f"another process on {peer.host} took the place of --task={peer.task}"
                self._refuse(before.route, reason)
            peer.take_over(before)
        if before is None or (before.host, before.pid) != (peer.host, peer.pid):
            self._processes[peer.task] += 1
        self._peers[peer.route] = self._by_task[peer.task] = peer

    def _admit_evaluator(self, peer: Peer) -> None:
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
            # Frames are many more than processes, so no number comes twice.
            start=self._frames_before + max(0, self._processes[peer.task] - 1),
        )

    def _answer(self, route: Route, version: int | None) -> None:
        """Sends the weights to who has those of ``version``, or the status where that is None.

        A connection gets one at a time: until it is handed over the next is owed, so that a peer
        that never reads keeps no more than one copy of weights from being forgotten.
        """
        if version is not None and (self._weights is None or self._weights[0] == version):
            self._send(route, "same")
            return
        before = self._large.get(route[0])
        if before is not None and not before.done:
            self._owed[route[0]] = (route, version)
        elif version is None:
            self._send_large(route, memoryview(messages.encode("status", status=self.status())))
        elif self._weights is not None:
            newest, flat, frames = self._weights
            header = messages.encode(
                "weights", version=newest, instance=self._instance, frames=frames
            )
            self.weights_sent += self._send_large(route, header, flat)

    def _pay(self) -> None:
        """Answers those whose last answer is handed over by now."""
        owed, self._owed = self._owed, {}
        for route, version in owed.values():
            self._answer(route, version)

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
        if peer.granted_at is None and not self._is_let_in_late(peer):
            return
        unroll = self._codec.decode_fields(buffers, peer.num_envs, self._version)
        steps = self.spec.unroll_length * peer.num_envs
        episodes = messages.decode_episodes(header, most=steps)
        waited = messages.decode_waited(header)
        acted_with = int(unroll.fields["weights_version"].min())
        peer.count(steps, len(episodes), waited, acted_with)
        self._episodes.extend((self._version, episode) for episode in episodes)
        peer.granted_at, peer.lapses, peer.pauses_until = None, 0, 0.0
        origin = f"actor {self._worker_set}-{peer.task} on {peer.host}"
        self._batches.put(peer.route, unroll, peer.num_envs, origin)

    def _is_let_in_late(self, peer: Peer) -> bool:
        """Whether there is room for an unroll that comes after its credit was taken back.

        Over a slow link every unroll takes so long, so its actor has longer from now on.
        """
        if peer.lapsed_since is None:
            raise BadMessage("unroll without credit")
        took, peer.lapsed_since = time.monotonic() - peer.lapsed_since, None
        peer.lapses, peer.pauses_until = 0, 0.0
        peer.credit_secs = min(max(peer.credit_secs, 2 * took), MAX_CREDIT_SECS)
        has_room = self._batches.reserve(peer.num_envs)
        self.late_unrolls += peer.num_envs
        log.warning(
            "actor %d-%d on %s took %.0f s to send its unroll (a slow link?): %s, and it may take "
            "%.0f s from now on",
            self._worker_set,
            peer.task,
            peer.host,
            took,
            "it was taken all the same" if has_room else "it was dropped for want of room",
            peer.credit_secs,
        )
        return has_room

    def _grant(self) -> None:
        """Gives credit to those who wait, first come first served, while there is room."""
        now, passed_over = time.monotonic(), 0
        while passed_over < len(self._queue):
            peer = self._queue[passed_over]
            if now - peer.last_seen > SILENT_SECS:
                self._leave_queue(peer)
                continue
            if now < peer.pauses_until:
                passed_over += 1
                continue
            if not self._batches.reserve(peer.num_envs):
                return
            self._leave_queue(peer)
            peer.granted_at, peer.lapsed_since = now, None
            if not self._send(peer.route, "credit"):
                self._take_back(peer)
        self._batches.wanted = 0

    def _look_who_is_there(self, now: float) -> None:
        """Takes room back from those who hold it and do not send, or are not there any more."""
        for peer in list(self._peers.values()):
            if peer.granted_at is None:
                # One that sends for so long hears that this endpoint is still here for it.
                since = peer.lapsed_since
                if since is not None and now - since < MAX_CREDIT_SECS:
                    self._send(peer.route, "wait")
                continue
            if now - peer.granted_at > peer.credit_secs:
                peer.lapse(now)
                self._take_back(peer)
                if peer.lapses > 1:
                    log.warning(
                        "actor %d-%d on %s has let %d credits in a row lapse: it waits %.0f s for "
                        "the next",
                        *(self._worker_set, peer.task, peer.host, peer.lapses),
                        peer.pauses_until - now,
                    )
            elif now - peer.granted_at > LOOK_SECS:
                self._send(peer.route, "wait")  # found out if nobody is there to get it
        self._large = {who: sent for who, sent in self._large.items() if not sent.done}

    def _leave_queue(self, peer: Peer) -> None:
        if peer.waiting_since is not None:
            self._queue.remove(peer)
            peer.waiting_since = None

    def _take_back(self, peer: Peer) -> None:
        if peer.granted_at is not None:
            peer.granted_at = None
            self._batches.release(peer.num_envs)

    def _forget(self, peer: Peer) -> None:
        if self._peers.get(peer.route) is peer:
            del self._peers[peer.route]
        self._leave_queue(peer)
        self._take_back(peer)

    def _leave(self, peer: Peer) -> None:
        """Forgets a peer that is gone; its task's counts wait for who comes after it."""
        self._forget(peer)
        peer.left = True

    def _drop(self, peer: Peer) -> None:
        """Forgets a peer, and that its task is taken."""
        self._forget(peer)
        if self._by_task.get(peer.task) is peer:
            del self._by_task[peer.task]

    def _refuse_bad(self, sender: Route, reason: str) -> None:
        self.bad_messages += 1
        self.last_bad = messages.cut(reason)
        self._banned[sender] = None
        if len(self._banned) > MAX_BANNED:
            del self._banned[next(iter(self._banned))]
        peer = self._peers.get(sender)
        if peer is not None:
            self._drop(peer)
        self._refuse(sender, f"bad message: {reason}", banned=True)

    def _refuse(self, route: Route, reason: str, **fields: Any) -> None:
        self._refused += 1
        now = time.monotonic()
        if now - self._told_refused > REFUSED_SECS:
            self._told_refused = now
            words = messages.cut(reason)
            log.warning("a peer is refused (%d so far): %s", self._refused, words)
        self._send(route, "refused", reason=messages.cut(reason), **fields)

    def _send(self, route: Route, kind: str, **fields: Any) -> bool:
        return self._send_parts(route, [messages.encode(kind, **fields)])

    def _send_large(self, route: Route, *parts: memoryview | bytes) -> bool:
        """``_send_parts``; ``_large`` knows then whether the last part is handed over."""
        # One that is small would be copied, and a thousand copies wait in a connection.
        frame = zmq.Frame(parts[-1], track=True, copy=False, copy_threshold=0)
        self._large[route[0]] = frame.tracker
        return self._send_parts(route, [*parts[:-1], frame])

    def _send_parts(self, route: Route, parts: list[Any]) -> bool:
        """Whether the connection took a message. It never blocks.

        A peer that does not read loses it; who was at the end of a connection that is gone is
        forgotten.
        """
        identity, actor_id = route
        frames = [identity, *messages.wrap(actor_id), *parts]
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            for peer in [peer for peer in self._peers.values() if peer.route[0] == identity]:
                self._leave(peer)
            return False
        return True


def _bounded(server: zmq.Socket, largest_frame: int) -> None:
    """Bounds what anyone may make ``server`` keep. Call before ``bind``."""
    # Of a frame's first bytes, in a handshake too: a larger one ends the connection.
    server.maxmsgsize = largest_frame + CURVE_BYTES
    server.rcvhwm = MAX_UNHEARD
    server.handshake_ivl = int(1000 * HANDSHAKE_SECS)
    server.router_mandatory = True  # a peer that is gone is told of, not guessed
    server.heartbeat_ivl = int(1000 * messages.HEARTBEAT_SECS)
    server.heartbeat_timeout = int(1000 * messages.HEARTBEAT_TIMEOUT_SECS)


def _key_of(frame: zmq.Frame) -> str:
    """The name of the key that its connection was admitted with; empty where there is none."""
    try:
        return str(frame.get("User-Id") or "")
    except zmq.ZMQError:
        return ""
