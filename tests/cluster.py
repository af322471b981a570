"""Several machines in one: hosts as namespaces on a bridge, each with its own sshd.

A host has its own network, host name, process ids, /etc/passwd (so its own home and password),
host key and tmux server; it shares files otherwise, so the project is there. ``kill`` takes its
power, ``boot`` gives it back, ``cut`` pulls its network plug and ``mend`` puts it back in;
``part_from`` loses what it sends to one other host.

    with Cluster(["front", "learner1", "actor1"]) as cluster:
        cluster["front"].run(["ssh", cluster["actor1"].ip, "hostname"])

Needs root, iproute2, util-linux and openssh-server.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

PASSWORD = "pass-word-canary-7d1"  # of every host's root; tests look for it where it must not be
_BOOT_SECS = 20.0


def missing() -> str:
    """Why this machine cannot hold a cluster; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "unshare", "nsenter", "/usr/sbin/sshd", "ssh-keygen", "tmux", "openssl"):
        if shutil.which(program) is None:
            return f"needs {program}"
    name = f"p{secrets.token_hex(2)}"
    for argv in (
        ("unshare", "--net", "--uts", "--pid", "--fork", "true"),
        ("ip", "netns", "add", name),
        ("ip", "-n", name, "link", "set", "lo", "up"),  # not so in a chroot without a mount
        ("ip", "netns", "del", name),
    ):
        done = _call(*argv, check=False)
        if done.returncode:
            _call("ip", "netns", "del", name, check=False)
            return f"'{' '.join(argv)}' fails: {done.stderr.strip()}"
    return ""


def end(process: subprocess.Popen) -> None:
    """Ends what ``Host.popen`` started: nsenter, and its child on the host."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


class Host:
    """One machine of a cluster."""

    def __init__(self, name: str, ip: str, base: pathlib.Path, namespace: str, port: int) -> None:
        self.name, self.ip, self.port = name, ip, port
        self.base = base
        self.home = base / "home"
        self._namespace = namespace
        self._link = f"v{namespace}"
        self._init: subprocess.Popen | None = None
        self._pid = 0  # of the process that is the host's first, as we see it

    # --- the machine ---

    def boot(self) -> None:
        """Starts the host with its sshd, and waits until that answers."""
        script = f"hostname {self.name}; exec /usr/sbin/sshd -D -f {self.base}/sshd_config"
        namespaces = ("--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
        with open(self.base / "console", "ab") as console:
            self._init = subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    self._namespace,
                    "unshare",
                    *namespaces,
                    "sh",
                    "-c",
                    script,
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + _BOOT_SECS
        while time.monotonic() < deadline:
            children = pathlib.Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
            with contextlib.suppress(OSError):
                self._pid = int((children.read_text().split() or ["0"])[0])
            if self._pid and (self.base / "sshd.pid").exists():
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} did not boot: {(self.base / 'console').read_text()}")

    def kill(self) -> None:
        """Ends everything on the host at once, as a loss of power does."""
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, 9)
            self._init.kill()
            self._init.wait()
            (self.base / "sshd.pid").unlink(missing_ok=True)
            self._init = None

    def cut(self) -> None:
        """Takes the host off the network."""
        _call("ip", "link", "set", self._link, "down")

    def mend(self) -> None:
        _call("ip", "link", "set", self._link, "up")

    def part_from(self, other: "Host") -> None:
        """Loses what is sent to another host from here, and only that."""
        nobody = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
        _call("ip", "-n", self._namespace, "neigh", "replace", other.ip, *nobody)

    def meet(self, other: "Host") -> None:
        """Undoes ``part_from``."""
        _call("ip", "-n", self._namespace, "neigh", "del", other.ip, "dev", "eth0")

    # --- what runs on it ---

    @property
    def env(self) -> dict[str, str]:
        """What a login on the host has."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "TMUX_TMPDIR": str(self.base / "tmux"),
            "TERM": "xterm-256color",
            "OMP_NUM_THREADS": "1",
        }

    def enter(self, argv: Sequence[Any]) -> list[str]:
        """The command that runs ``argv`` on this host."""
        inside = ["nsenter", "-t", str(self._pid), "-m", "-n", "-u", "-p"]
        return [*inside, *map(str, argv)]

    def popen(self, argv: Sequence[Any], env: dict[str, str] | None = None, **kwargs: Any):
        return subprocess.Popen(
            self.enter(argv), env={**self.env, **(env or {})}, start_new_session=True, **kwargs
        )

    def run(
        self, argv: Sequence[Any], env: dict[str, str] | None = None, **kwargs: Any
    ) -> subprocess.CompletedProcess:
        """Runs a command on the host to its end."""
        kwargs.setdefault("timeout", 120)
        kwargs.setdefault("check", False)
        return subprocess.run(
            self.enter(argv),
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            **kwargs,
        )

    def processes(self) -> dict[int, str]:
        """Command lines of what runs on the host, by the ids it has there."""
        listing = self.run(["ps", "-eo", "pid=,args="]).stdout
        rows = (line.split(None, 1) for line in listing.splitlines())
        return {int(row[0]): row[1] if len(row) > 1 else "" for row in rows}

    def windows(self, session: str) -> list[str]:
        """Names of a tmux session's windows; none where there is no such session."""
        argv = ["tmux", "list-windows", "-t", f"={session}", "-F", "#{window_name}"]
        done = self.run(argv)
        return done.stdout.split() if done.returncode == 0 else []


class Cluster:
    """Hosts on one network; a context manager that leaves nothing behind."""

    def __init__(self, names: Sequence[str], ssh_port: int = 22) -> None:
        self._names = list(names)
        self._port = ssh_port
        self._tag = secrets.token_hex(2)
        self._bridge = f"b{self._tag}"
        self._stack = contextlib.ExitStack()
        self.hosts: dict[str, Host] = {}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> "Cluster":
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        # Sockets lie below: their paths must be short.
        base = pathlib.Path(tempfile.mkdtemp(prefix="rig", dir="/tmp"))
        self.base = base
        self._stack.callback(shutil.rmtree, base, ignore_errors=True)
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        _call("ip", "link", "add", self._bridge, "type", "bridge")
        self._stack.callback(_call, "ip", "link", "del", self._bridge, check=False)
        _call("ip", "link", "set", self._bridge, "up")
        key = base / "id"
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        hashed = _call("openssl", "passwd", "-6", PASSWORD).stdout.strip()
        for number, name in enumerate(self._names, 1):
            self.hosts[name] = self._make_host(name, f"10.77.0.{number}", hashed)
        known = "".join(
            f"{host.ip},{name} {(host.base / 'host_key.pub').read_text()}"
            if self._port == 22
            else f"[{host.ip}]:{self._port},[{name}]:{self._port} "
            f"{(host.base / 'host_key.pub').read_text()}"
            for name, host in self.hosts.items()
        )
        names = "".join(f"{host.ip} {name}\n" for name, host in self.hosts.items())
        for host in self.hosts.values():
            ssh = host.home / ".ssh"
            (ssh / "known_hosts").write_text(known)
            shutil.copy(f"{key}.pub", ssh / "authorized_keys")
            (pathlib.Path("/etc/netns") / host._namespace / "hosts").write_text(
                f"127.0.0.1 localhost\n{names}"
            )
        # Only the first host, where the user sits, holds the private key.
        first = self.hosts[self._names[0]].home / ".ssh" / "id_ed25519"
        shutil.copy(key, first)
        first.chmod(0o600)
        for host in self.hosts.values():
            self._stack.callback(host.kill)
            host.boot()

    def _make_host(self, name: str, ip: str, hashed: str) -> Host:
        namespace = f"{self._tag}{len(self.hosts)}"
        host = Host(name, ip, self.base / name, namespace, self._port)
        (host.home / ".ssh").mkdir(parents=True, mode=0o700)
        (host.base / "tmux").mkdir(mode=0o700)
        _call("ip", "netns", "add", namespace)
        self._stack.callback(_call, "ip", "netns", "del", namespace, check=False)
        # ip netns exec lays these over those of /etc.
        etc = pathlib.Path("/etc/netns") / namespace
        etc.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, etc, ignore_errors=True)
        (etc / "passwd").write_text(
            f"root:x:0:0:root:{host.home}:/bin/bash\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        (etc / "shadow").write_text(f"root:{hashed}:19000:0:99999:7:::\n")
        (etc / "shadow").chmod(0o600)
        inside = ("ip", "-n", namespace)
        peer = ("peer", "name", "eth0", "netns", namespace)
        _call("ip", "link", "add", f"v{namespace}", "type", "veth", *peer)
        _call("ip", "link", "set", f"v{namespace}", "master", self._bridge, "up")
        _call(*inside, "addr", "add", f"{ip}/24", "dev", "eth0")
        _call(*inside, "link", "set", "eth0", "up")
        _call(*inside, "link", "set", "lo", "up")
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host.base / "host_key"))
        (host.base / "sshd_config").write_text(
            f"Port {self._port}\nListenAddress {ip}\nHostKey {host.base}/host_key\n"
            f"PidFile {host.base}/sshd.pid\nPermitRootLogin yes\nPasswordAuthentication yes\n"
            "UsePAM no\nStrictModes no\nMaxStartups 100\nMaxSessions 100\nUseDNS no\n"
            "Subsystem sftp internal-sftp\n"
            f"SetEnv TMUX_TMPDIR={host.base}/tmux OMP_NUM_THREADS=1\n"
        )
        return host


def _call(*argv: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done


def wait_until(condition, timeout: float, what: Any = "") -> Any:
    """Polls until ``condition()`` is true, and returns that; fails the test after ``timeout``.

    ``what`` is told then; a function is called for what to tell.
    """
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            told = what() if callable(what) else what
            raise AssertionError(f"not within {timeout:.0f} s: {told}")
        time.sleep(0.2)


def listening(ip: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ip, port)) == 0


@contextlib.contextmanager
def cluster_of(*names: str, **kwargs: Any) -> Iterator[Cluster]:
    """A cluster, or a skipped test that says why there can be none."""
    if reason := missing():
        pytest.skip(f"no cluster here: {reason}")
    with Cluster(names, **kwargs) as cluster:
        yield cluster
