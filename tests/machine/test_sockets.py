"""Where processes of one user on one machine meet, and nobody else."""

import pathlib
import shutil
import tempfile

import pytest

from impala_torch.flags.checks import MAX_SOCKET_PATH_BYTES
from impala_torch.machine import sockets


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_a_private_address_is_in_a_folder_of_ones_own_and_gone_afterwards(
    name, monkeypatch, request
):
    base = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path must be short
    request.addfinalizer(lambda: shutil.rmtree(base))
    temporary = base / name
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with sockets.private_address() as address, sockets.private_address() as other:
        assert address != other
        path = pathlib.Path(address.removeprefix("ipc://"))
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert len(str(path)) <= MAX_SOCKET_PATH_BYTES
        assert path.parent.is_relative_to(temporary) == (name == "short")
        path.touch()  # what a server leaves that was killed
    assert not path.parent.exists()
