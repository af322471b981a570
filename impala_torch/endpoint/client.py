"""The actor's side of the parameter endpoint: asks, waits, and survives a learner's restart."""

import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.run_spec import RunSpec

log = logging.getLogger(__name__)


class RunEnded(Exception):
    """The learner says that the run is over."""


class Refused(Exception):
    """The learner does not take this actor; the message says why."""


class Banned(Refused):
    """The learner found fault with a message of this actor and hears no more from it."""


class LearnerGone(Exception):
    """No learner answered for --learner_timeout."""


class _Silent(Exception):
    """No answer for a while: the connection or the learner is gone."""


class Welcome(NamedTuple):
    worker_set: int
    run_id: str
    layout: list
    start: int  # another one for each process that takes a task, over all of a run's starts


class EndpointClient:
    """One actor's connection. Every call returns an answer or raises; none waits for ever.

    All calls raise RunEnded, Refused, Banned, LearnerGone as above, and reconnect by themselves.
    """

    def __init__(
        self,
        address: str,
        spec: RunSpec,
        task: int,
        num_envs: int,
        *,
        keys: curve.RunKeys | None = None,
        relay: str = "",
        role: str = "",
        timeout_secs: float = 600.0,
        patience_secs: float = 15.0,
    ) -> None:
        """
        Args:
          address: of the endpoint: ``ip:port``, or ``ipc://`` and a path.
          relay: ZeroMQ's address of what to connect to instead; it knows the keys.
          role: ``messages.EVALUATOR``, or empty: an actor.
          timeout_secs: give up when nothing was heard for so long; 0 = never.
          patience_secs: silence after which the connection is made anew.
        """
        self._address = address
        self._relay = relay
        self._keys = None if relay else keys
        self._timeout = timeout_secs
        self._patience = patience_secs
        self._hello = messages.encode(
            "hello",
            protocol=messages.PROTOCOL,
            spec=spec.to_header(),
            task=task,
            num_envs=num_envs,
            host=socket.gethostname(),
            pid=os.getpid(),
            **({"role": role} if role else {}),
        )
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        self._heard = time.monotonic()
        self._instance: Any = None  # of the learner that said welcome last
        self.weights_dtype = ""  # of what pull returns; told by each welcome
        self.frames = 0  # that the weights pulled last were trained for
        self._pulled_from: Any = None  # the instance that the actor's weights are of
        self.wait_secs = 0.0  # spent waiting for the learner, in all
        self._told_wait_secs = 0.0  # of them, told with unrolls
        # Held by who may use the socket: the caller's thread, but while it plays.
        self._free = threading.Lock()
        self._free.acquire()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="alive", daemon=True).start()

    def connect(self) -> Welcome:
        """Says hello until a learner answers."""
        self._heard = time.monotonic()
        delay, told = 0.1, False
        while True:
            try:
                return self._say_hello()
            except _Silent:
                silent = time.monotonic() - self._heard
                if self._timeout and silent > self._timeout:
                    raise LearnerGone(
                        f"no learner answered at {self._address} for {silent:.0f} s"
                    ) from None
                if not told:
                    log.info("waiting for the learner at %s", self._address)
                    told = True
                time.sleep(delay * random.uniform(0.5, 1.0))  # not all actors at one moment
                delay = min(2 * delay, 5.0)

    def pull(self, version: int) -> tuple[int, memoryview] | None:
        """Newer weights than ``version`` as (version, their bytes), or None."""

        def parts() -> list:
            # Another learner's versions say nothing of this one's.
            known = version if self._pulled_from in (None, self._instance) else -1
            return [messages.encode("pull", version=known)]

        header, buffers = self._ask(parts, "weights", "same")
        self._pulled_from = self._instance
        if header["type"] == "same":
            return None
        self.frames = header.get("frames", 0)
        return header["version"], buffers[0]

    def status(self) -> dict[str, Any]:
        """The endpoint's numbers, see ``server.EndpointServer.status``."""
        header, _ = self._ask(lambda: [messages.encode("status")], "status")
        return header["status"]

    def push(self, buffers: Sequence[bytes], episodes: list) -> None:
        """Sends unrolls as soon as the learner has room for them.

        Those acted with the weights of a learner that was started again meanwhile are dropped:
        their versions may lie ahead of its own. An unroll lost is no loss to the run.
        """
        self._ask(lambda: [messages.encode("ready")], "credit", repeat=True)
        if self._pulled_from not in (None, self._instance):
            return
        waited, self._told_wait_secs = self.wait_secs - self._told_wait_secs, self.wait_secs
        header = messages.encode("unroll", episodes=episodes, waited=waited)
        # No answer is awaited; the next call notices a connection that is gone.
        with contextlib.suppress(_Silent):
            self._send([header, *buffers])

    @contextlib.contextmanager
    def playing(self) -> Iterator[None]:
        """Tells the learner now and then that this actor lives, while the block uses no call."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()

    def _beat(self) -> None:
        """A thread: a socket may be used by several, one at a time, as the lock has it."""
        message = messages.encode("alive")
        while not self._closed.wait(messages.ALIVE_SECS):
            if not self._free.acquire(blocking=False):
                continue
            try:
                with contextlib.suppress(_Silent):  # the next call notices it too
                    self._send([message])
            finally:
                self._free.release()

    def close(self) -> None:
        self._closed.set()
        if self._socket is not None:
            self._socket.close(linger=0)
        self._context.term()

    def _ask(
        self, make: Callable[[], list], *kinds: str, repeat: bool = False
    ) -> tuple[dict[str, Any], list[memoryview]]:
        """Sends what ``make`` makes and waits for an answer of ``kinds``.

        Over a new connection if need be; it is made anew for that.

        ``repeat`` asks again now and then: the answer may take long, and that the learner says
        "wait" in the meantime shows that it lives.
        """
        started = time.monotonic()
        try:
            while True:
                try:
                    parts = make()
                    self._send(parts)
                    return self._receive(kinds, again=parts if repeat else None)
                except _Silent:
                    log.warning("the learner at %s is silent: connecting anew", self._address)
                    self.connect()
        finally:
            self.wait_secs += time.monotonic() - started

    def _say_hello(self) -> Welcome:
        # A new socket has a new identity: answers to what was asked before cannot reach it.
        if self._socket is not None:
            self._socket.close(linger=0)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.reconnect_ivl = 100
        self._socket.reconnect_ivl_max = 2000
        if self._keys is not None:
            curve.secure_client(self._socket, self._keys)
        self._socket.connect(self._relay or curve.zmq_address(self._address))
        heard = self._heard
        self._send([self._hello])
        try:
            header, _ = self._receive(("welcome",), patience=min(3.0, self._patience))
        except _Silent:
            self._heard = heard
            raise
        self._instance = header["instance"]
        self.weights_dtype = header["dtype"]
        names = ("worker_set", "run_id", "layout", "start")
        return Welcome(*(header[name] for name in names))

    def _send(self, parts: list) -> None:
        assert self._socket is not None, "connect first"
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise _Silent from None

    def _receive(
        self, kinds: tuple[str, ...], again: list | None = None, patience: float | None = None
    ) -> tuple[dict[str, Any], list[memoryview]]:
        assert self._socket is not None
        patience = patience or self._patience
        silent_since = asked = time.monotonic()
        while True:
            if not self._socket.poll(timeout=int(1000 * patience / 5)):
                now = time.monotonic()
                if now - silent_since > patience:
                    raise _Silent
                if again is not None and now - asked > patience / 3:
                    self._send(again)
                    asked = now
                continue
            parts = [part.buffer for part in self._socket.recv_multipart(copy=False)]
            self._heard = silent_since = time.monotonic()
            header = messages.decode(parts[0])
            kind = header["type"]
            if kind in kinds:
                return header, parts[1:]
            if kind == "stop":
                raise RunEnded
            if kind == "refused":
                refusal = Banned if header.get("banned") else Refused
                raise refusal(str(header.get("reason")))
            if kind == "unknown":
                raise _Silent


def ask_status(
    address: str, keys: curve.RunKeys | None = None, timeout_secs: float = 5.0
) -> dict[str, Any] | None:
    """The endpoint's ``status`` (see ``server.EndpointServer.status``); None without an answer."""
    context = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.linger = 0
    try:
        if keys is not None:
            curve.secure_client(sock, keys)
        sock.connect(curve.zmq_address(address))
        sock.send(messages.encode("status"))
        if not sock.poll(timeout=int(1000 * timeout_secs)):
            return None
        return messages.decode(sock.recv_multipart()[0]).get("status")
    finally:
        sock.close()
        context.term()
