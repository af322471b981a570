"""From unrolls to batches: bounded, decoded in its own thread into buffers made once.

The endpoint's I/O thread reserves room before an actor may send (``reserve``) and hands over what
arrives (``put``); the assembling thread decodes it into columns of a batch; the learner takes
full batches (``get``) and gives their buffers back (``recycle``).
"""

import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from impala_torch.endpoint.messages import BadMessage, Route, UnrollCodec
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.structures import Unroll


class Batch(NamedTuple):
    """One batch of B unrolls: the same memory as tensors (pinned for a GPU) and as arrays."""

    tensors: Unroll
    arrays: Unroll


class QueueClosed(Exception):
    """The queue was closed while somebody waited for it."""


class BatchQueue:
    """Assembles batches of ``batch_size`` unrolls; holds at most ``capacity`` such batches."""

    def __init__(
        self,
        spec: RunSpec,
        batch_size: int,
        capacity: int,
        make_batch: Callable[[], Batch],
        max_policy_lag: int = 0,
    ) -> None:
        """
        Args:
          spec: what unrolls look like.
          batch_size: B.
          capacity: batches that may wait; a single message larger than this is let in alone.
          make_batch: makes the buffers of a batch; called capacity + 3 times, here.
          max_policy_lag: unrolls older than this many updates are dropped; 0 = none.
        """
        self._batch_size = batch_size
        self._capacity = capacity * batch_size
        self._max_policy_lag = max_policy_lag
        self._codec = UnrollCodec(spec)
        self._lock = threading.Lock()
        self._held = 0  # unrolls here: received, and not yet taken by the learner
        self._reserved = 0  # unrolls that actors have credit for
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._free: queue.SimpleQueue = queue.SimpleQueue()
        # Beside the waiting ones: one in training, one on its way to a GPU, one being filled.
        for _ in range(capacity + 3):
            self._free.put(make_batch())
        self.version = 0  # of the newest weights, for max_policy_lag
        self.dropped = 0  # unrolls that were too old
        self.on_room: Callable[[], None] = lambda: None
        self.on_bad: Callable[[Route, str], None] = lambda sender, reason: None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="assembler", daemon=True)
        self._thread.start()

    # --- the endpoint's side ---

    def reserve(self, unrolls: int) -> bool:
        """Sets room aside for a message of ``unrolls``; False if there is none now."""
        with self._lock:
            room = self._capacity - self._held - self._reserved
            # A message larger than the whole queue must get in some time, or its actor starves
            # and the learner with it: let it in alone, when not even a batch is here.
            alone = self._reserved == 0 and self._held < self._batch_size
            if unrolls > room and not alone:
                return False
            self._reserved += unrolls
            return True

    def release(self, unrolls: int) -> None:
        """Gives room back that an actor will not use."""
        with self._lock:
            self._reserved -= unrolls
        self.on_room()

    def put(self, sender: Route, unroll: Unroll, num_envs: int) -> None:
        """Takes over what ``UnrollCodec.decode_fields`` gave, for room set aside before."""
        with self._lock:
            self._reserved -= num_envs
            self._held += num_envs
        self._inbox.put((sender, unroll, num_envs))

    # --- the learner's side ---

    @property
    def depth(self) -> int:
        """Full batches that wait."""
        return self._ready.qsize()

    def get(self, timeout: float) -> Batch | None:
        """The next full batch, or None after ``timeout`` seconds.

        Raises:
          QueueClosed: it was closed.
          RuntimeError: the assembling thread died; its error is the cause.
        """
        try:
            batch = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        if batch is None:
            self._ready.put(None)  # for whoever asks again
            if self._error is not None:
                raise RuntimeError("the assembling thread died") from self._error
            raise QueueClosed
        self._leave(self._batch_size)
        return batch

    def recycle(self, batch: Batch) -> None:
        """Gives a batch's buffers back; nobody may use them any more."""
        self._free.put(batch)

    def close(self) -> None:
        """Ends the assembling thread and waits for it."""
        self._inbox.put(None)
        self._free.put(None)
        self._thread.join()

    # --- the assembling thread ---

    def _leave(self, unrolls: int) -> None:
        with self._lock:
            self._held -= unrolls
        self.on_room()

    def _run(self) -> None:
        try:
            self._assemble()
        except BaseException as error:
            self._error = error
        finally:
            self._ready.put(None)

    def _assemble(self) -> None:
        batch: Batch | None = None
        column = 0
        while (item := self._inbox.get()) is not None:
            sender, unroll, num_envs = item
            for env in range(num_envs):
                if self._too_old(unroll.weights_version[env]):
                    self.dropped += 1
                    self._leave(1)
                    continue
                if batch is None:
                    batch = self._free.get()
                    if batch is None:
                        return
                try:
                    self._codec.decode_column(unroll, env, batch.arrays, column)
                except BadMessage as error:
                    self.on_bad(sender, str(error))
                    self._leave(num_envs - env)
                    break
                column += 1
                if column == self._batch_size:
                    self._ready.put(batch)
                    batch, column = None, 0

    def _too_old(self, weights_version: np.int64) -> bool:
        return 0 < self._max_policy_lag < self.version - int(weights_version)
