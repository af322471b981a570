"""The hosts of a run: which rows are on which, and having things done on them, many at a time."""

import concurrent.futures
import dataclasses
import functools
import json
import pathlib
import shlex
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from frontend import scripts
from frontend.hosts import host as agent
from frontend.hosts.ssh import Connection, HostError, Login, Trust
from frontend.workers import Worker
from impala_torch.flags.errors import UserError

T = TypeVar("T")

# Exit codes of the words that precede the agent on another host.
_NO_FOLDER, _NO_PYTHON, _NO_PROJECT = 71, 72, 73


@dataclasses.dataclass(frozen=True)
class HostSpec:
    """A host of a run, and where the project is on it."""

    name: str  # as in the CSV; "localhost" for this machine
    login: Login | None  # None is this machine
    workdir: str
    python: str

    @property
    def is_here(self) -> bool:
        return self.login is None


def spec_of(worker: Worker, here: "Here", remote_workdir: str, remote_python: str) -> HostSpec:
    """The host of a row. ``here`` tells which addresses are this machine's."""
    if here.is_own(worker.ip):
        return HostSpec("localhost", None, str(here.root), here.python)
    login = Login(
        worker.ip,
        worker.ssh_port,
        worker.ssh_username,
        worker.ssh_password,
        worker.ssh_key_path,
    )
    workdir = worker.workdir or remote_workdir or str(here.root)
    return HostSpec(worker.ip, login, workdir, worker.python or remote_python or here.python_there)


class Here:
    """What this machine is: its addresses, the project's folder and its interpreter."""

    def __init__(self, root: pathlib.Path, python: str) -> None:
        self.root, self.python = root, python
        inside = pathlib.Path(python).is_relative_to(root)
        # An interpreter of the project's folder is there too, once the project is set up there.
        relative = str(pathlib.Path(python).relative_to(root)) if inside else ".venv/bin/python"
        self.python_there = relative
        self.is_own = functools.cache(self._is_own)

    @staticmethod
    def _is_own(name: str) -> bool:
        try:
            addresses = resolve(name)
        except OSError:
            return False  # perhaps an alias of ~/.ssh/config: SSH will tell
        return all(_can_bind(address) for address in addresses)


def resolve(name: str) -> list[str]:
    """The IPv4 addresses of a host. Raises OSError where there is none of that name."""
    try:
        found = socket.getaddrinfo(name, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from error
    return sorted({str(entry[4][0]) for entry in found})


def _can_bind(address: str) -> bool:
    # Only an own address can be bound to; no packet is sent.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return address != "0.0.0.0"  # that is all of them, and none to connect to


class Hosts:
    """Connections to a run's hosts, made when needed: one a host, for all that is asked of it."""

    def __init__(self, trust: Trust, concurrency: int) -> None:
        self._trust, self._concurrency = trust, concurrency
        self._connections: dict[Login, Connection] = {}
        self._locks: dict[Login, threading.Lock] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self, spec: HostSpec, request: Mapping[str, Any], timeout_secs: float = 60.0
    ) -> dict[str, Any]:
        """Has ``frontend.hosts.host`` do something on a host. Raises HostError."""
        if spec.login is None:
            try:
                return agent.handle(request)
            except HostError:
                raise
            except UserError as error:
                raise HostError(str(error)) from error
        command = _agent_command(spec)
        code, out, err = self.run(spec, command, json.dumps(request).encode(), timeout_secs)
        if code in (_NO_FOLDER, _NO_PYTHON, _NO_PROJECT):
            raise HostError(_missing(spec, code))
        for line in reversed(out.splitlines()):
            if line.startswith(agent.REPLY):
                reply = json.loads(line.removeprefix(agent.REPLY))
                if not reply.pop("ok"):
                    raise HostError(reply["reason"])
                return reply
        last = (err.strip().splitlines() or [f"exit code {code}"])[-1]
        hint = "; --setup installs what an actor needs" if "ModuleNotFound" in last else ""
        raise HostError(f"the frontend's helper failed there ({spec.python}): {last}{hint}")

    def run(
        self, spec: HostSpec, command: str, stdin: bytes = b"", timeout_secs: float = 60.0
    ) -> tuple[int, str, str]:
        """Runs a shell command on another host. Returns exit code, output and error output."""
        try:
            return self.connection(spec).run(command, stdin, timeout_secs)
        except HostError:
            self._forget(spec)  # the next call tries anew
            raise

    def connection(self, spec: HostSpec) -> Connection:
        """The connection to a host, made if there is none. Raises HostError."""
        login = spec.login
        assert login is not None, "this machine needs no connection"
        with self._lock:
            lock = self._locks.setdefault(login, threading.Lock())
        with lock:
            if login not in self._connections:
                self._connections[login] = Connection(login, self._trust)
            return self._connections[login]

    def on_all(
        self, specs: Iterable[HostSpec], work: Callable[[HostSpec], T]
    ) -> dict[HostSpec, T | HostError]:
        """Does ``work`` for each host, many at a time; a host's HostError is its result."""

        def attempt(spec: HostSpec) -> T | HostError:
            try:
                return work(spec)
            except HostError as error:
                return error

        specs = list(dict.fromkeys(specs))
        if not specs:
            return {}
        with concurrent.futures.ThreadPoolExecutor(min(self._concurrency, len(specs))) as pool:
            return dict(zip(specs, pool.map(attempt, specs), strict=True))

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _forget(self, spec: HostSpec) -> None:
        with self._lock:
            connection = self._connections.pop(spec.login, None) if spec.login else None
        if connection is not None:
            connection.close()


def shell_path(path: str) -> str:
    """A path as the shell reads it whole; ``~/`` is the home."""
    if path == "~":
        return '"$HOME"'
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)


def _agent_command(spec: HostSpec) -> str:
    """The shell command that runs the agent, or says by its exit code what is not there for it.

    Not a file of frontend/scripts: whether the host has those is what it finds out. Nothing else
    is: an older project without them would fail later, in each window.
    """
    folder, python = shell_path(spec.workdir), shell_path(spec.python)
    return (
        f"cd {folder} 2>/dev/null || exit {_NO_FOLDER}; "
        f"test -d {scripts.FOLDER} || exit {_NO_PROJECT}; "
        f"command -v {python} >/dev/null 2>&1 || exit {_NO_PYTHON}; "
        f"exec {python} -m frontend.hosts.host"
    )


def _missing(spec: HostSpec, code: int) -> str:
    if code == _NO_FOLDER:
        return (
            f"project folder missing: there is no {spec.workdir}; give --sync_code, or name the "
            "folder with --remote_workdir or the CSV's workdir"
        )
    if code == _NO_PROJECT:
        return f"project missing: {spec.workdir} holds no impala_torch of this kind; --sync_code"
    return (
        f"no Python there: {spec.python} (in {spec.workdir}) is not to be found; --setup makes "
        "one, --remote_python or the CSV's python names one"
    )
