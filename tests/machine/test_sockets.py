"""Where processes of one user on one machine meet, and nobody else."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

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


def test_the_folder_of_a_killed_process_goes_and_those_of_others_stay(monkeypatch, request):
    base = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(base))
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    program = """
import sys, tempfile, time
from impala_torch.machine import sockets
tempfile.tempdir = sys.argv[1]
with sockets.private_address() as address:
    print(address, flush=True)
    time.sleep(600)
"""

    def living():
        argv = [sys.executable, "-c", program, str(base)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        path = process.stdout.readline().strip().removeprefix("ipc://")
        pathlib.Path(path).touch()
        return process, pathlib.Path(path).parent

    (_, alive), (killed, dead) = living(), living()
    other = base / "impala_torch-a-file"
    other.touch()
    killed.kill()
    killed.wait()
    with sockets.private_address():
        assert dead.exists()  # it may be one that is just being made
    old = time.time() - 3600
    for path in (alive, dead, other):
        os.utime(path, (old, old))
    with sockets.private_address() as address:
        here = pathlib.Path(address.removeprefix("ipc://")).parent
        assert set(base.iterdir()) == {alive, other, here}
