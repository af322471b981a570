"""Where processes of one user on one machine meet, and nobody else."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from impala_torch.flags.addresses import IPC
from impala_torch.flags.checks import MAX_SOCKET_PATH_BYTES

_NAME = "learner.ipc"


@contextlib.contextmanager
def private_address() -> Iterator[str]:
    """An ``ipc://`` address in a new folder that only this user can open; gone with the block."""
    longest = os.path.join(tempfile.gettempdir(), "impala_torch-12345678", _NAME)
    fits = len(os.fsencode(longest)) <= MAX_SOCKET_PATH_BYTES
    with tempfile.TemporaryDirectory(
        prefix="impala_torch-", dir=None if fits else "/tmp", ignore_cleanup_errors=True
    ) as folder:
        yield IPC + os.path.join(folder, _NAME)
