"""Where processes of one user on one machine meet, and nobody else."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

from impala_torch.flags.addresses import IPC
from impala_torch.flags.checks import MAX_SOCKET_PATH_BYTES

_NAME = "learner.ipc"
_PREFIX = "impala_torch-"
_NEW_SECS = 60.0  # that a folder may be without its lock


@contextlib.contextmanager
def private_address() -> Iterator[str]:
    """An ``ipc://`` address in a new folder that only this user can open; gone with the block.

    Folders of processes that were killed meanwhile go too: each is locked by its process.
    """
    base = pathlib.Path(tempfile.gettempdir())
    longest = base / f"{_PREFIX}12345678" / _NAME
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        base = pathlib.Path("/tmp")
    _forget_the_dead(base)
    with tempfile.TemporaryDirectory(
        prefix=_PREFIX, dir=base, ignore_cleanup_errors=True
    ) as folder:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield IPC + os.path.join(folder, _NAME)
        finally:
            os.close(lock)


def _forget_the_dead(base: pathlib.Path) -> None:
    """Removes this user's folders that no process holds any more."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, in use, or gone meanwhile
            stat = folder.lstat()
            if stat.st_uid != os.getuid() or time.time() - stat.st_mtime < _NEW_SECS:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
