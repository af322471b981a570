"""From unrolls to batches: bounded, decoded in its own thread into buffers made once.

The endpoint's I/O thread reserves room before an actor may send (``reserve``) and hands over what
arrives (``put``). It waits, compressed, until the assembling thread decodes it into columns of a
batch; the learner takes full batches (``get``) and gives their buffers back (``recycle``).

Learners of one run share what waits (``learning.sharing``): what is compressed can be given away
(``give``, ``take_over``), so a learner that shares assembles no more than its part (``allow``).
"""

import collections
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from impala_torch.endpoint.codec import CompressedUnroll, UnrollCodec
from impala_torch.endpoint.messages import BadMessage, Route
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.structures import Unroll

# One in training, one on its way to a GPU, one ready, one being filled.
_BUFFERS = 4


class Batch(NamedTuple):
    """One batch of B unrolls: the same memory as tensors (pinned for a GPU) and as arrays."""

    tensors: Unroll  # of torch.Tensor
    arrays: Unroll[np.ndarray]
    origins: list[str]  # who acted each unroll, in words


class Waiting(NamedTuple):
    """One environment's unroll that waits, compressed."""

    sender: Route | None  # None where another learner gave it
    unroll: CompressedUnroll
    env: int
    origin: str  # who acted it, in words


class Stock(NamedTuple):
    """What a learner has, in unrolls: what learners tell each other before each update."""

    in_hand: int  # of the batch that it learns from next: B, or 0 where it has none
    taken: int  # assembled into batches beyond that one
    waiting: int  # compressed: it can be given away
    coming: int  # on their way from other learners
    reserved: int  # of actors that may send now
    wanted: int  # of a message that waits for credit, since it is larger than the room; 0 = none
    overdraft: int  # of a message that the learners agreed to let in all the same
    rounds: int  # for how many rounds such a message has waited


class QueueClosed(Exception):
    """The queue was closed while somebody waited for it."""


class _Partial:
    """A batch that is being filled. Equal to itself alone."""

    def __init__(self, batch: Batch, columns: Sequence[int]) -> None:
        self.batch = batch
        self.columns = collections.deque(columns)  # that nobody fills yet
        self.missing = len(columns)


class BatchQueue:
    """Assembles batches of ``batch_size`` unrolls; holds at most ``capacity`` such batches."""

    def __init__(
        self,
        spec: RunSpec,
        batch_size: int,
        capacity: int,
        make_batch: Callable[[], Batch],
        max_policy_lag: int = 0,
        shared: bool = False,
    ) -> None:
        """
        Args:
          spec: what unrolls look like.
          batch_size: B.
          capacity: batches that may wait; a single message larger than the room is let in where
            not even a batch is here.
          make_batch: makes the buffers of a batch; called here, a fixed number of times.
          max_policy_lag: unrolls older than this many updates when they would be learned from
            are dropped; 0 = none.
          shared: whether other learners share what waits here; nothing is assembled then before
            ``allow``.
        """
        self._batch_size = batch_size
        self.capacity = capacity * batch_size  # in unrolls
        self._max_policy_lag = max_policy_lag
        self._shared = shared
        self._codec = UnrollCodec(spec)
        # Guards all below. Two conditions, since who wakes for nothing takes time from who works.
        self._lock = threading.Lock()
        self._may_work = threading.Condition(self._lock)  # the assembling thread waits for it
        self._is_ready = threading.Condition(self._lock)  # the learner does
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._partials: collections.deque[_Partial] = collections.deque()  # the first is filled
        self._ready: collections.deque[Batch] = collections.deque()
        self._free = [make_batch() for _ in range(_BUFFERS)]
        self._taken = 0  # unrolls in partial and ready batches
        self._allowed: float = 0 if shared else float("inf")  # how many those may be
        self._coming = 0
        self._reserved = 0  # unrolls that actors have credit for
        self._overdraft = 0
        self._rounds = 0  # see ``Stock``
        self._closed = False
        self._error: BaseException | None = None
        self.wanted = 0  # see ``Stock``; kept by the endpoint's thread
        self.version = 0  # of the newest weights, for max_policy_lag
        self.dropped = 0  # unrolls that were too old
        self.given = 0  # unrolls, to other learners
        self.received = 0  # unrolls, from other learners
        self.on_room: Callable[[], None] = lambda: None
        self.on_bad: Callable[[Route, str], None] = lambda sender, reason: None
        self._thread = threading.Thread(target=self._run, name="assembler", daemon=True)
        self._thread.start()

    # --- the endpoint's side ---

    def reserve(self, unrolls: int) -> bool:
        """Sets room aside for a message of ``unrolls``; False if there is none now."""
        with self._lock:
            if not self._may_come(unrolls):
                self.wanted = unrolls if self._shared else 0
                return False
            self.wanted = 0
            self._reserved += unrolls
            return True

    def _may_come(self, unrolls: int) -> bool:
        if unrolls <= self.capacity - self._held - self._reserved:
            return True
        # A message larger than the room must get in some time, or its actor starves and the
        # learner with it.
        if self._shared:
            # Whether that is now, the learners decide together: what is here may not be enough for
            # all of them, and each for itself would let one in, where one learner would let in one.
            lent = self._overdraft >= unrolls
            self._overdraft = 0
            return lent
        # Alone, when not even a batch is here.
        return self._reserved == 0 and self._held - self._stray < self._batch_size

    def release(self, unrolls: int) -> None:
        """Gives room back that an actor will not use."""
        with self._lock:
            self._reserved -= unrolls
        self.on_room()

    def put(self, sender: Route, unroll: CompressedUnroll, num_envs: int, origin: str = "") -> None:
        """Takes over what ``UnrollCodec.decode_fields`` gave, for room set aside before."""
        with self._lock:
            self._reserved -= num_envs
            self._waiting.extend(Waiting(sender, unroll, env, origin) for env in range(num_envs))
            self._may_work.notify()

    # --- the learner's side ---

    @property
    def depth(self) -> float:
        """Batches that wait, or whose unrolls do."""
        return self._held / self._batch_size

    @property
    def num_ready(self) -> int:
        """Full batches that wait."""
        return len(self._ready)

    def get(self, timeout: float) -> Batch | None:
        """The next full batch, or None after ``timeout`` seconds.

        Raises:
          QueueClosed: it was closed.
          RuntimeError: the assembling thread died; its error is the cause.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                while not self._ready:
                    if self._error is not None:
                        raise RuntimeError("the assembling thread died") from self._error
                    if self._closed:
                        raise QueueClosed
                    if not self._is_ready.wait(deadline - time.monotonic()):
                        return None
                batch = self._ready.popleft()
                self._taken -= self._batch_size
                taken_back = self._take_back(batch)
                self._may_work.notify()  # it may assemble as much again
            self.on_room()
            if not taken_back:
                return batch

    def refresh(self, batch: Batch) -> bool:
        """Whether a batch that ``get`` gave has become too old meanwhile, and was taken back."""
        with self._lock:
            taken_back = self._take_back(batch)
        if taken_back:
            self.on_room()
        return taken_back

    def recycle(self, batch: Batch) -> None:
        """Gives a batch's buffers back; nobody may use them any more."""
        with self._lock:
            self._free.append(batch)
            self._may_work.notify()

    def close(self) -> None:
        """Ends the assembling thread and waits for it."""
        with self._lock:
            self._closed = True
            self._may_work.notify_all()
            self._is_ready.notify_all()
        self._thread.join()

    # --- what learners share ---

    def stock(self, in_hand: bool) -> Stock:
        """What is here, for the others to know. Gives an overdraft back that nobody needs."""
        with self._lock:
            if not self.wanted:
                self._overdraft = 0
            self._rounds = self._rounds + 1 if self.wanted and not self._overdraft else 0
            return Stock(
                in_hand=self._batch_size if in_hand else 0,
                taken=self._taken - self._stray,
                waiting=len(self._waiting),
                coming=self._coming,
                reserved=self._reserved,
                wanted=self.wanted,
                overdraft=self._overdraft,
                rounds=self._rounds,
            )

    def allow(self, unrolls: int) -> None:
        """Lets so many unrolls be assembled beyond the batch that the learner has."""
        with self._lock:
            self._allowed = unrolls
            self._may_work.notify()

    def lend(self, unrolls: int) -> None:
        """Lets a message of ``unrolls`` in, though it is larger than the room."""
        with self._lock:
            self._overdraft = unrolls
        self.on_room()

    def give(self, unrolls: int) -> list[Waiting]:
        """Takes the oldest that wait out of the queue: so many, or as many as there are."""
        with self._lock:
            count = min(unrolls, len(self._waiting))
            given = [self._waiting.popleft() for _ in range(count)]
            self.given += count
        self.on_room()
        return given

    def expect(self, unrolls: int) -> None:
        """So many are on their way here: they count as if they were here."""
        with self._lock:
            self._coming += unrolls

    def take_over(self, expected: int, unrolls: Sequence[Waiting]) -> None:
        """Takes in what came of ``expected`` unrolls."""
        with self._lock:
            self._coming -= expected
            self._waiting.extend(unrolls)
            self.received += len(unrolls)
            self._may_work.notify()
        if len(unrolls) < expected:
            self.on_room()

    # --- the assembling thread ---

    @property
    def _held(self) -> int:
        """Unrolls here, or on their way from another learner, that the learner has not taken."""
        return len(self._waiting) + self._taken + self._coming

    @property
    def _stray(self) -> int:
        """Of those taken, unrolls in batches that are filled only when another one is full.

        There are some where unrolls of a full batch were too old; nobody learns from them soon.
        """
        later = list(self._partials)[1:]
        return sum(self._batch_size - len(partial.columns) for partial in later)

    def _run(self) -> None:
        try:
            self._assemble()
        except BaseException as error:
            self._error = error
        finally:
            with self._lock:
                self._is_ready.notify_all()

    def _assemble(self) -> None:
        while True:
            with self._lock:
                while not self._closed and not self._may_assemble():
                    self._may_work.wait()
                if self._closed:
                    return
                before = self.dropped
                partial, work = self._next_work()
                dropped = self.dropped > before
            if dropped:
                self.on_room()
            if partial is None:  # all were too old
                continue
            done = 0
            for waiting, column in work:
                try:
                    arrays = partial.batch.arrays
                    self._codec.decode_column(waiting.unroll, waiting.env, arrays, column)
                    partial.batch.origins[column] = waiting.origin
                except BadMessage as error:
                    columns = [column for _, column in work[done:]]
                    self._leave_out(partial, columns, waiting, str(error))
                    break
                done += 1
            with self._lock:
                partial.missing -= done
                if not partial.missing:
                    self._partials.remove(partial)
                    self._ready.append(partial.batch)
                    self._is_ready.notify()

    def _may_assemble(self) -> bool:
        room = self._partials or self._free
        return bool(self._waiting and room and self._taken - self._stray < self._allowed)

    def _next_work(self) -> tuple[_Partial | None, list[tuple[Waiting, int]]]:
        """What to decode next, of one message and for one batch: unrolls and their columns."""
        partial: _Partial | None = None
        work: list[tuple[Waiting, int]] = []
        unroll = self._waiting[0].unroll
        while self._may_assemble() and self._waiting[0].unroll is unroll:
            if partial is not None and not partial.columns:
                break
            waiting = self._waiting.popleft()
            if self._max_policy_lag and self._too_old(
                unroll.fields["weights_version"][waiting.env]
            ):
                self.dropped += 1
                continue
            if partial is None:
                if not self._partials:
                    columns = range(self._batch_size)
                    self._partials.append(_Partial(self._free.pop(), columns))
                partial = self._partials[0]
            self._taken += 1
            work.append((waiting, partial.columns.popleft()))
        return partial, work

    def _leave_out(self, partial: _Partial, columns: list[int], bad: Waiting, reason: str) -> None:
        """Forgets an unroll that cannot be decoded, and what came with it in one message."""
        with self._lock:
            partial.columns.extendleft(reversed(columns))
            self._taken -= len(columns)
            others = [one for one in self._waiting if one.unroll is not bad.unroll]
            self._waiting = collections.deque(others)
        if bad.sender is not None:
            self.on_bad(bad.sender, reason)
        self.on_room()

    def _take_back(self, batch: Batch) -> bool:
        """Whether unrolls of a full batch are too old; then they are dropped, and others wanted."""
        old = np.flatnonzero(self._too_old(batch.arrays.weights_version)).tolist()
        if old:
            self.dropped += len(old)
            self._taken += self._batch_size - len(old)
            self._partials.appendleft(_Partial(batch, old))
            self._may_work.notify()
        return bool(old)

    def _too_old(self, weights_version: np.ndarray) -> np.ndarray:
        """Whether learning from weights of these versions now would be learning too late."""
        limit = self._max_policy_lag
        return (self.version - weights_version > limit) & (limit > 0)
