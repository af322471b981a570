"""TensorBoard's event files: written whole records at a time, by whoever calls."""

import io
import itertools
import os
import pathlib
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any

from impala_torch.report.appended import AppendedFile

_number = itertools.count()


class Board:
    """An event file in a folder. TensorBoard's own writer has a thread that ends for good at the
    first write that fails; here a write that fails raises, and the next may succeed."""

    def __init__(self, folder: pathlib.Path, *, purge_step: int | None = None) -> None:
        """
        Args:
          folder: of the run; the file is made by the first ``write``.
          purge_step: from which step on what older files of the folder hold is void.
        """
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_number)}"
        self._folder = folder
        self._file = AppendedFile(folder / f"events.out.tfevents.{name}")
        self._purge_step = purge_step
        self._begun = False

    def write(self, summaries: Iterable[Any], step: int) -> None:
        """Writes summaries of ``torch.utils.tensorboard.summary`` as of ``step``.

        Raises:
          OSError: they could not be written; the file is as before.
        """
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        data = io.BytesIO()
        records, now = RecordWriter(data), time.time()
        if not self._begun:
            self._folder.mkdir(parents=True, exist_ok=True)
            first = event_pb2.Event(wall_time=now, file_version="brain.Event:2")
            records.write(first.SerializeToString())
            if self._purge_step is not None:
                begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                void = event_pb2.Event(wall_time=now, step=self._purge_step, session_log=begin)
                records.write(void.SerializeToString())
        for summary in summaries:
            event = event_pb2.Event(wall_time=now, step=step, summary=summary)
            records.write(event.SerializeToString())
        self._file.append(data.getvalue())
        self._begun = True

    def close(self) -> None:
        self._file.close()


def scalar(tag: str, value: float) -> Any:
    """A number by name."""
    from torch.utils.tensorboard import summary

    return summary.scalar(tag, value)


def counts(tag: str, values: Sequence[int]) -> Any:
    """How often each of the numbers from 0 on came, [N], as a histogram."""
    from torch.utils.tensorboard import summary

    return summary.histogram_raw(
        tag,
        min=-0.5,
        max=len(values) - 0.5,
        num=sum(values),
        sum=sum(number * count for number, count in enumerate(values)),
        sum_squares=sum(number**2 * count for number, count in enumerate(values)),
        bucket_limits=[number + 0.5 for number in range(len(values))],
        bucket_counts=list(values),
    )
