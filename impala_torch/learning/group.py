"""The learner group: all learners of a run, in step.

``Group`` is a group of one and needs neither Horovod nor MPI; ``HorovodGroup`` is what ``mpirun``
started. Tensors travel over Horovod; control (agreeing, gathering, comparing) over MPI, as JSON.

Neither Horovod nor MPI ever gives up waiting for a rank that is gone. So a group says what it is at
(``phase``), and ranks can send each other signs of life beside their work (``beat``), for
``learning.watchdog``.
"""

import contextlib
import faulthandler
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from impala_torch.flags.errors import UserError

SUM, AVERAGE = "sum", "average"
_END_SECS = 5.0  # that what a rank has sent may take to arrive when it leaves
_AVERAGING_SECS = 10.0  # what takes longer is a rank that stood still: averaging is not to blame
_LONGEST_SECS = 1e6  # that a timer of Python's can be set to, about
_TAG, _BEAT = 1, 2  # of what ranks send each other, one to one: data, signs of life


class Phase(NamedTuple):
    """What a rank is at."""

    words: str
    awaits: bool = False  # nothing but the other ranks
    bounded: bool = True  # it has an end, however late


STARTING = Phase("starting")
WAITING = Phase("waiting for data")
LEARNING = Phase("learning from a batch")
SAVING = Phase("writing a checkpoint")
ENDING = Phase("ending", bounded=False)  # a last evaluation may take any time
JOINING = Phase("joining the others", awaits=True)
AGREEING = Phase("agreeing with the others", awaits=True)
AVERAGING = Phase("averaging gradients", awaits=True)
LEAVING = Phase("leaving the others", awaits=True)


class Group:
    """A group of one learner: every agreement is its own word."""

    allreduce_secs = 0.0  # spent reducing gradients, in all
    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    phase = STARTING
    marks = 0  # how often the phase was entered or left: it goes on where this does

    @contextlib.contextmanager
    def at(self, phase: Phase) -> Iterator[None]:
        """Says that the rank is at ``phase`` within the block, and afterwards at what it was."""
        before, self.phase = self.phase, phase
        self.marks += 1
        try:
            yield
        finally:
            self.phase = before
            self.marks += 1

    def beat(self, data: bytes) -> None:
        """Sends all other ranks a sign of life; does not wait. Of one thread, with ``heard``."""

    def heard(self) -> dict[int, bytes]:
        """The newest sign of life of each rank that sent one since the last call."""
        return {}

    def tell(self, words: Sequence[int]) -> np.ndarray:
        """All ranks' words, [ranks, words] int64. All ranks call it at the same point."""
        return np.array([words], np.int64)

    def agree(self, words: Sequence[int]) -> list[int]:
        """The largest of all ranks' words, place by place. All ranks call it at the same point."""
        return self.tell(words).max(axis=0).tolist()

    def gather(self, value: Any) -> list[Any]:
        """All ranks' values (what JSON holds), by rank, on every rank."""
        return [value]

    def send(self, rank: int, data: bytes) -> None:
        """Begins to send ``data`` to another rank, which is to ``receive`` it; does not wait."""

    def receive(self, rank: int) -> bytes | None:
        """What another rank sent, in the order in which it did; None while nothing is there."""
        return None

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises UserError on every rank, naming the difference, unless all have equal facts."""

    def check_device(self, device: torch.device) -> None:
        """Raises UserError where gradients on ``device`` cannot be reduced."""

    def distributed(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        backwards_per_step: int = 1,
        precision: str = "float32",
        reduction: str = AVERAGE,
    ) -> torch.optim.Optimizer:
        """An optimizer whose step uses the sum, or the average, of all ranks' gradients.

        So that ranks learn as one with all their data would: the sum where each one's loss is a
        sum over its data, the average where it is a mean.

        Args:
          optimizer: what steps.
          named_parameters: what it steps.
          backwards_per_step: backward passes whose gradients add up before a step.
          precision: type that gradients travel and are added up as, float32 or float16.
          reduction: SUM or AVERAGE.
        """
        return optimizer

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites every rank's tensors with rank 0's."""

    def average(self, tensor: torch.Tensor) -> None:
        """Overwrites a tensor with the average of all ranks'."""

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        max_norm: float,
    ) -> float:
        """Steps, the reduced gradient's global norm clipped to ``max_norm`` (negative = not).

        Where the norm is not finite nothing is changed: it is the same on all ranks, so none of
        them steps.

        Returns:
          The norm before clipping.
        """
        norm = self._clipped(parameters, max_norm)
        if math.isfinite(norm):
            optimizer.step()
        return norm

    def close(self) -> None:
        """Leaves the group; the last thing that a rank does with it."""

    def abort(self, code: int) -> None:
        """Ends all ranks after an error of this one that the others cannot agree on."""

    @staticmethod
    def _clipped(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
        """Clips the gradient's norm, unless it is not finite, and returns what it was."""
        gradients = [param.grad for param in parameters if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        found = float(norm)
        if max_norm >= 0 and math.isfinite(found):
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
        return found


class HorovodGroup(Group):
    """The ranks that ``mpirun`` started."""

    def __init__(self) -> None:
        try:
            # Before hvd.init(), which then shares the MPI that mpi4py set up for threads.
            import horovod.torch as hvd
            from mpi4py import MPI
        except ImportError as error:
            raise UserError(
                f"several learners need Horovod and mpi4py, and {error.name} is not installed: "
                "'docker/setup.sh train' builds them; one learner needs neither"
            ) from error
        self._hvd, self._mpi = hvd, MPI
        # Ours alone: what we send must not mix with Horovod's own messages.
        self._comm = MPI.COMM_WORLD.Dup()
        self._beats: dict[int, tuple[Any, np.ndarray]] = {}  # that are being sent, by rank
        hvd.init()
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self._sending: list[tuple[Any, np.ndarray]] = []
        self._receiving: dict[int, tuple[Any, np.ndarray]] = {}  # by rank

    def tell(self, words: Sequence[int]) -> np.ndarray:
        mine = np.array(words, np.int64)
        everyone = np.empty((self.size, mine.size), np.int64)
        with self.at(AGREEING):
            self._wait(self._comm.Iallgather(mine, everyone))
        return everyone

    def gather(self, value: Any) -> list[Any]:
        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.empty(self.size, np.int64)
        with self.at(AGREEING):
            self._wait(self._comm.Iallgather(np.array([mine.size], np.int64), sizes))
            everything = np.empty(int(sizes.sum()), np.uint8)
            starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            receive = [everything, (sizes.tolist(), starts.tolist()), self._mpi.BYTE]
            self._wait(self._comm.Iallgatherv([mine, self._mpi.BYTE], receive))
        return [
            json.loads(everything[start : start + size].tobytes())
            for start, size in zip(starts, sizes, strict=True)
        ]

    def send(self, rank: int, data: bytes) -> None:
        # MPI reads the buffer until the other side has it all.
        self._sending = [pair for pair in self._sending if not pair[0].Test()]
        buffer = np.frombuffer(data, np.uint8)
        self._sending.append((self._comm.Isend([buffer, self._mpi.BYTE], rank, _TAG), buffer))

    def receive(self, rank: int) -> bytes | None:
        if rank not in self._receiving:
            status = self._mpi.Status()
            message = self._comm.Improbe(rank, _TAG, status)
            if message is None:
                return None
            data = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
            self._receiving[rank] = (message.Irecv([data, self._mpi.BYTE]), data)
        request, data = self._receiving[rank]
        if not request.Test():
            return None
        del self._receiving[rank]
        return data.tobytes()

    def beat(self, data: bytes) -> None:
        for rank in range(self.size):
            sending = self._beats.get(rank)
            # To one that takes none, one is on its way and no more.
            if rank != self.rank and (sending is None or sending[0].Test()):
                buffer = np.frombuffer(data, np.uint8)
                request = self._comm.Isend([buffer, self._mpi.BYTE], rank, _BEAT)
                self._beats[rank] = (request, buffer)

    def heard(self) -> dict[int, bytes]:
        newest = {}
        status = self._mpi.Status()
        while (message := self._comm.Improbe(self._mpi.ANY_SOURCE, _BEAT, status)) is not None:
            data = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
            message.Recv([data, self._mpi.BYTE])  # so small a message is here as a whole
            newest[status.Get_source()] = data.tobytes()
        return newest

    def check_same(self, facts: Mapping[str, Any]) -> None:
        everyone = self.gather(dict(facts))
        first = everyone[0]
        for rank, theirs in enumerate(everyone):
            for name in sorted({*first, *theirs}):
                if first.get(name) != theirs.get(name):
                    raise UserError(
                        f"learner {rank} has {name} {theirs.get(name)!r} and learner 0 "
                        f"{first.get(name)!r}: all learners of a run need the same flags and code"
                    )

    def check_device(self, device: torch.device) -> None:
        if device.type == "cuda" and not self._hvd.cuda_built():
            raise UserError(
                "this Horovod was built without CUDA, so several learners cannot use GPUs: give "
                "--device=cpu, or build it with HOROVOD_GPU_OPERATIONS=NCCL (its installation "
                "guide says what that needs)"
            )

    def distributed(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        backwards_per_step: int = 1,
        precision: str = "float32",
        reduction: str = AVERAGE,
    ) -> torch.optim.Optimizer:
        op, compression = self._hvd.Average, self._hvd.Compression.none
        if reduction == SUM:
            op = self._hvd.Sum
        if precision == "float16":  # divides itself, before anything is added up
            op, compression = self._hvd.Sum, _Half(self.size, reduction)
        wrapped = self._hvd.DistributedOptimizer(
            optimizer,
            named_parameters=list(named_parameters),
            op=op,
            backward_passes_per_step=backwards_per_step,
            compression=compression,
        )
        # Horovod makes a new optimizer of the same kind, which would forget what was restored.
        wrapped.state = optimizer.state
        return wrapped

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        handles = [
            self._hvd.broadcast_async_(tensor, root_rank=0, name=f"broadcast.{index}")
            for index, tensor in enumerate(tensors)
        ]
        with self.at(AGREEING):
            for handle in handles:
                self._hvd.synchronize(handle)

    def average(self, tensor: torch.Tensor) -> None:
        with self.at(AVERAGING):
            self._hvd.allreduce_(tensor, name="average", op=self._hvd.Average)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        max_norm: float,
    ) -> float:
        if parameters[0].is_cuda:  # else the rest of backward would count as averaging
            torch.cuda.current_stream().synchronize()
        started = time.perf_counter()
        with self.at(AVERAGING):
            optimizer.synchronize()  # type: ignore[attr-defined]
        self.allreduce_secs += min(time.perf_counter() - started, _AVERAGING_SECS)
        norm = self._clipped(parameters, max_norm)
        if math.isfinite(norm):
            with optimizer.skip_synchronize():  # type: ignore[attr-defined]
                optimizer.step()
        return norm

    def close(self) -> None:
        deadline = time.monotonic() + _END_SECS
        while not all(request.Test() for request, _ in self._sending):
            if time.monotonic() > deadline:
                break
            time.sleep(1e-3)
        with self.at(LEAVING):
            self._hvd.shutdown()

    def abort(self, code: int) -> None:
        self._comm.Abort(code)

    @staticmethod
    def _wait(request: Any) -> None:
        # MPI's own wait spins; a learner shares its cores with actors, so nap between tests.
        naps = 0
        while not request.Test():
            naps += 1
            time.sleep(2e-5 if naps < 50 else 5e-4)


class _Half:
    """Horovod's compression to float16, of which the largest number is 65,504.

    Each rank sends its gradient divided by the number of ranks, so that what is added up is no
    larger than the largest of them, whichever the reduction.
    """

    def __init__(self, size: int, reduction: str) -> None:
        self._before = 1 / size
        self._after = float(size) if reduction == SUM else 1.0

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        return (tensor * self._before).half(), tensor.dtype

    def decompress(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.to(dtype) * self._after


def join(stall_secs: float = 0.0) -> Group:
    """The group that this process was started in: of one, unless ``mpirun`` started several.

    Args:
      stall_secs: how long the other ranks may take to come; the process ends with the stacks of its
        threads where they take longer. 0 = any time.

    Raises:
      UserError: there are several and Horovod is not installed.
    """
    size = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    if size == 1:
        return Group()
    if stall_secs:  # MPI's own start lets no other thread of Python's run
        faulthandler.dump_traceback_later(min(stall_secs, _LONGEST_SECS), exit=True)
    try:
        return HorovodGroup()
    finally:
        faulthandler.cancel_dump_traceback_later()
