"""Facts of a host that the check before a start compares; runs on the host itself.

Standard library only: what is missing there is what the facts are about.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from impala_torch import __version__
from impala_torch.flags.errors import UserError

_PACKAGES = (
    *("torch", "numpy", "absl-py", "gymnasium", "ale-py", "opencv-python-headless", "pyzmq"),
    *("msgpack", "zstandard", "libtmux"),
)
_LEARNER_PACKAGES = ("horovod", "mpi4py", "tensorboard")
_CHUNK = bytes(1 << 16)
_MEASURE_SECS = 0.3  # how long to send for the bandwidth
_CONNECT_SECS = 5.0
_PINGS = 10


def gather(request: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of this host: the interpreter and its packages, ports, GPUs, clock, space.

    The request has learner (whether learners run here), ports ([[ip, port], ...] that they will
    serve), directory (where the run writes).
    """
    names = _PACKAGES + (_LEARNER_PACKAGES if request.get("learner") else ())
    versions: dict[str, str | None] = {}
    for name in names:
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "host": socket.gethostname(),
        "home": os.path.expanduser("~"),
        "python": platform.python_version(),
        "impala_torch": __version__,
        "packages": versions,
        "programs": {name: shutil.which(name) is not None for name in ("tmux", "orted", "bash")},
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
        "time": time.time(),
        "disk_bytes": _free(request.get("directory") or "~"),
        "shm_bytes": _free("/dev/shm"),
        "taken_ports": [
            [ip, port, reason]
            for ip, port in request.get("ports", ())
            if (reason := _taken(ip, port))
        ],
    }


def listen(request: Mapping[str, Any]) -> dict[str, Any]:
    """Takes what ``measure`` sends from other hosts: ``count`` of them, at ``port`` of ``ip``.

    Returns when all were there, or after ``secs``.
    """
    deadline = time.monotonic() + request["secs"]
    served: list[threading.Thread] = []
    with socket.create_server((request["ip"], request["port"]), backlog=128) as server:
        while len(served) < request["count"] and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            thread = threading.Thread(target=_echo_pings, args=(connection,), daemon=True)
            thread.start()
            served.append(thread)
    for thread in served:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {"served": len(served)}


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Latency and bandwidth from here to ``port`` of ``ip``, where somebody ``listen``s."""
    try:
        with _connect(request["ip"], request["port"]) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips = []
            for _ in range(_PINGS):
                started = time.perf_counter()
                sock.sendall(b"p")
                if sock.recv(1) != b"p":
                    raise OSError("the connection was closed")
                trips.append(time.perf_counter() - started)
            started, sent = time.perf_counter(), 0
            while time.perf_counter() - started < _MEASURE_SECS:
                sock.sendall(_CHUNK)
                sent += len(_CHUNK)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(_CONNECT_SECS)
            sock.recv(1)  # all of it has arrived
            secs = time.perf_counter() - started
    except OSError as error:
        raise UserError(f"cannot reach {request['ip']}:{request['port']}: {error}") from error
    return {"latency_secs": sorted(trips)[_PINGS // 2], "bytes_per_sec": sent / secs}


def _connect(ip: str, port: int) -> socket.socket:
    """Connects to a host whose ``listen`` may be about to begin."""
    deadline = time.monotonic() + _CONNECT_SECS
    while True:
        try:
            return socket.create_connection((ip, port), timeout=_CONNECT_SECS)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _echo_pings(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(10)
        for _ in range(_PINGS):
            connection.sendall(connection.recv(1))
        while connection.recv(1 << 18):
            pass
        connection.sendall(b"e")


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    argv = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _free(path: str) -> int | None:
    place = pathlib.Path(os.path.expanduser(path))
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _taken(ip: str, port: int) -> str:
    """Why nothing can be served at ``ip:port``; empty if it can."""
    with socket.socket() as probe:
        # What has just ended may leave its connections waiting; they are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
