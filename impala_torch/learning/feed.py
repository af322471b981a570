"""Ready batches on the learner's device, the next one's copy under way while this one is learned.

Computing and copying are two queues (CUDA streams) of a GPU: a copy from pinned memory that is
started before the learner waits for its update costs the update nothing. On a CPU batches are
where they are needed.
"""

import contextlib
from typing import Any, NamedTuple

import torch

from impala_torch.endpoint.batches import Batch, BatchQueue, QueueClosed
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.structures import Unroll, empty_unroll


def make_batch(spec: RunSpec, batch_size: int, device: torch.device) -> Batch:
    """The memory of a batch of ``batch_size`` unrolls; pinned where it is to go to a GPU."""
    empty = empty_unroll(spec.environment, spec.unroll_length, spec.state_size, batch_size)
    tensors = [torch.from_numpy(array) for array in empty]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    arrays = Unroll(*(tensor.numpy() for tensor in tensors))
    return Batch(Unroll(*tensors), arrays, [""] * batch_size)


class _Copy(NamedTuple):
    """A batch and its copy on the GPU, which is whole once ``done`` has happened there."""

    batch: Batch
    unroll: Unroll[torch.Tensor]
    done: Any  # torch.cuda.Event


class Feed:
    """What a learner takes its batches from. Used by the learner's thread alone."""

    def __init__(self, batches: BatchQueue, device: torch.device) -> None:
        """
        Args:
          batches: the queue; on a GPU their tensors are pinned.
          device: where the learner computes.
        """
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: _Copy | None = None

    def get(self, timeout: float) -> Batch | None:
        """The next batch, or None after ``timeout`` seconds. Raises as ``BatchQueue.get``."""
        if self._next is not None:
            if not self._batches.refresh(self._next.batch):
                return self._next.batch
            self._next = None
        return self._batches.get(timeout)

    def prepare_next(self) -> None:
        """Starts copying the next batch, if one waits: for when the GPU has work to do."""
        if self._stream is not None and self._next is None and self._batches.num_ready:
            with contextlib.suppress(QueueClosed, RuntimeError):  # ``get`` says it again
                batch = self._batches.get(0)
                self._next = None if batch is None else self._copy(batch)

    def on_device(self, batch: Batch) -> Unroll[torch.Tensor]:
        """A batch's tensors where the learner computes; work queued from now on may read them."""
        if self._stream is None:
            return batch.tensors
        copy, self._next = self._next, None
        if copy is None or copy.batch is not batch:
            copy = self._copy(batch)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copy.done)
        for tensor in copy.unroll:  # their memory is free again only when that work has ended
            tensor.record_stream(computing)
        copy.done.synchronize()  # from here on the batch's own memory may be written again
        return copy.unroll

    def recycle(self, batch: Batch) -> None:
        """Gives the buffers of a batch that was ``on_device`` back to the queue."""
        self._batches.recycle(batch)

    def _copy(self, batch: Batch) -> _Copy:
        with torch.cuda.stream(self._stream):
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in batch.tensors]
            done = torch.cuda.Event()
            done.record(self._stream)
        return _Copy(batch, Unroll(*tensors), done)
