"""A connection to another host: runs commands there; knows nothing of training.

Host keys are checked against known hosts, as OpenSSH does; ``~/.ssh/config`` is followed. Every
failure is a ``HostError`` whose words say what to do.
"""

import base64
import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import pathlib
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from impala_torch.flags.errors import UserError

if TYPE_CHECKING:
    import paramiko

_KEEPALIVE_SECS = 15
_END_SECS = 5.0  # that what a host said last may take to be read
_add_lock = threading.Lock()


class HostError(UserError):
    """Something cannot be done on a host; the message says what and, where known, why."""


@dataclasses.dataclass(frozen=True)
class Login:
    """How to log in to a host."""

    host: str  # as the CSV has it: an address, a name, or an alias of ~/.ssh/config
    port: int = 0  # 0 leaves it to ~/.ssh/config, or 22
    username: str = ""  # "" leaves it to ~/.ssh/config, or this user's name
    password: str = dataclasses.field(default="", repr=False)
    key_path: str = ""


@dataclasses.dataclass(frozen=True)
class Trust:
    """Which hosts are known."""

    known_hosts: str = "~/.ssh/known_hosts"
    accept_new: bool = False  # add hosts that are not known; a changed key is never accepted
    timeout_secs: float = 10.0


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a login leads after ~/.ssh/config."""

    hostname: str
    port: int
    username: str
    key_paths: tuple[str, ...]
    proxy_command: str


def resolve(login: Login) -> Target:
    """Follows ~/.ssh/config; what the CSV says comes first."""
    import paramiko

    config = paramiko.SSHConfig()
    path = pathlib.Path("~/.ssh/config").expanduser()
    if path.exists():
        try:
            config = paramiko.SSHConfig.from_path(str(path))
        except (OSError, paramiko.SSHException) as error:
            raise HostError(f"{path} cannot be read: {error}") from error
    found = config.lookup(login.host)
    proxy = found.get("proxycommand", "")
    if jump := found.get("proxyjump", ""):
        proxy = f"ssh -W {found['hostname']}:{login.port or found.get('port', 22)} {jump}"
    keys = [login.key_path] if login.key_path else found.get("identityfile", [])
    return Target(
        hostname=found["hostname"],
        port=login.port or int(found.get("port", 22)),
        username=login.username or found.get("user", "") or _user(),
        key_paths=tuple(os.path.expanduser(key) for key in keys),
        proxy_command="" if proxy.lower() == "none" else proxy,
    )


class Connection:
    """One authenticated connection to a host. Raises HostError where there can be none."""

    def __init__(self, login: Login, trust: Trust) -> None:
        import paramiko

        # It would tell of each failure itself, with a traceback, between the lines of a table.
        logger = logging.getLogger("paramiko")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        target = resolve(login)
        self._where = f"{target.username}@{target.hostname}:{target.port}"
        self._client = paramiko.SSHClient()
        known = os.path.expanduser(trust.known_hosts)
        _load_known_hosts(self._client, known)
        self._client.set_missing_host_key_policy(_policy(known, trust.accept_new))
        proxy = paramiko.ProxyCommand(target.proxy_command) if target.proxy_command else None
        has_password = bool(login.password)
        begun = time.monotonic()
        try:
            self._client.connect(
                target.hostname,
                port=target.port,
                username=target.username,
                password=login.password or None,
                key_filename=[key for key in target.key_paths if os.path.exists(key)] or None,
                # A password that is given is meant; keys tried before it may use up the tries.
                allow_agent=not has_password,
                look_for_keys=not has_password and not target.key_paths,
                timeout=trust.timeout_secs,
                banner_timeout=trust.timeout_secs,
                auth_timeout=trust.timeout_secs,
                sock=proxy,
            )
        except HostError:
            self._client.close()
            raise
        except Exception as error:
            self._client.close()
            secs = time.monotonic() - begun
            raise HostError(self._reason(error, login, target, trust, secs)) from None
        transport = self._client.get_transport()
        assert transport is not None
        transport.set_keepalive(_KEEPALIVE_SECS)

    def run(
        self, command: str, stdin: bytes = b"", timeout_secs: float = 60.0
    ) -> tuple[int, str, str]:
        """Runs a command of the POSIX shell. Returns its exit code, output and error output."""
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise HostError(f"the connection to {self._where} is gone")
            channel = transport.open_session(timeout=timeout_secs)
            with channel:
                channel.settimeout(timeout_secs)
                # Whatever the login shell is, sh reads the command.
                with _closed_after(channel, timeout_secs):
                    channel.exec_command(f"exec sh -c {shlex.quote(command)}")
                sender = threading.Thread(target=_send, args=(channel, stdin), daemon=True)
                sender.start()
                errors: list[bytes] = []
                reader = threading.Thread(
                    target=_drain_beside, args=(channel.recv_stderr, errors), daemon=True
                )
                reader.start()
                output: list[bytes] = []
                _drain(channel.recv, output)
                reader.join(_END_SECS)
                if not channel.status_event.wait(timeout_secs):
                    raise TimeoutError
                code = channel.recv_exit_status()
                return (
                    code,
                    b"".join(output).decode(errors="replace"),
                    b"".join(errors).decode(errors="replace"),
                )
        except HostError:
            raise
        except (TimeoutError, socket.timeout):  # noqa: UP041
            raise HostError(f"{self._where} did not answer for {timeout_secs:.0f} s") from None
        except Exception as error:
            raise HostError(f"the connection to {self._where} broke: {_in_a_line(error)}") from None

    def sftp(self) -> "paramiko.SFTPClient":
        return self._client.open_sftp()

    def close(self) -> None:
        self._client.close()

    def _reason(
        self, error: Exception, login: Login, target: Target, trust: Trust, secs: float
    ) -> str:
        """Why there is no connection, in a line; ``secs`` is how long it was tried."""
        import paramiko

        where = self._where
        if isinstance(error, paramiko.BadHostKeyException):
            return (
                f"changed host key: {where} shows {_fingerprint(error.key)}, and "
                f"{trust.known_hosts} has {_fingerprint(error.expected_key)}; if the host was made "
                f"anew, remove the old key: ssh-keygen -R {_known_name(target)}"
            )
        if isinstance(error, paramiko.PasswordRequiredException):
            return f"the key for {where} has a passphrase: add it to ssh-agent"
        if isinstance(error, paramiko.AuthenticationException):
            if login.password:
                return f"wrong password for {where}, or it takes none"
            missing = [key for key in target.key_paths if not os.path.exists(key)]
            hint = f"; {missing[0]} does not exist" if login.key_path and missing else ""
            return (
                f"no key was accepted for {where}{hint}: 'ssh-copy-id' installs one, or give "
                "ssh_key_path or ssh_password in the CSV"
            )
        if isinstance(error, socket.gaierror):
            return f"unknown host: '{target.hostname}' is neither a known name nor an address"
        numbers = _errnos(error)
        if errno.ECONNREFUSED in numbers:
            return f"refused: nothing takes SSH at {where}; is sshd running there, on that port?"
        if isinstance(error, TimeoutError) or numbers:
            words = os.strerror(min(numbers)) if numbers else "no answer"
            return f"unreachable: {where} ({words.lower()})"
        if secs >= trust.timeout_secs:
            return (
                f"no SSH with {where}: what listens there did not answer within "
                f"{trust.timeout_secs:.0f} s (--ssh_timeout)"
            )
        return f"no SSH with {where}: {_in_a_line(error)}"


def _load_known_hosts(client: "paramiko.SSHClient", path: str) -> None:
    """Reads the keys that are trusted; a line that is none is passed over, as OpenSSH does."""
    import paramiko

    try:
        lines = pathlib.Path(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"--known_hosts={path} cannot be read: {error.strerror}") from error
    for line in lines:
        if line.startswith(("#", "@")) or not line.strip():
            continue
        with contextlib.suppress(paramiko.SSHException, paramiko.hostkeys.InvalidHostKey):
            entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
            if entry is not None and entry.key is not None:
                for name in entry.hostnames or []:
                    client.get_host_keys().add(name, entry.key.get_name(), entry.key)


def _policy(known_hosts: str, accept_new: bool) -> "paramiko.MissingHostKeyPolicy":
    import paramiko

    class Policy(paramiko.MissingHostKeyPolicy):
        def missing_host_key(
            self, client: "paramiko.SSHClient", hostname: str, key: "paramiko.PKey"
        ) -> None:
            other = client.get_host_keys().lookup(hostname)
            if other:
                raise HostError(
                    f"changed host key: {hostname} shows {_fingerprint(key)}, and {known_hosts} "
                    f"has {', '.join(_fingerprint(one) for one in other.values())}; if the host "
                    f"was made anew, remove the old key: ssh-keygen -R {shlex.quote(hostname)}"
                )
            if not accept_new:
                raise HostError(
                    f"unknown host key: {hostname} shows {_fingerprint(key)}, which {known_hosts} "
                    "does not have; compare it, then log in once with ssh, or give "
                    "--ssh_accept_new_hosts"
                )
            line = f"{hostname} {key.get_name()} {key.get_base64()}\n"
            try:
                with _add_lock:
                    pathlib.Path(known_hosts).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    with open(known_hosts, "a") as file:
                        file.write(line)
            except OSError as error:
                raise HostError(
                    f"--known_hosts={known_hosts} cannot be written: {error.strerror}"
                ) from error

    return Policy()


def _send(channel: "paramiko.Channel", data: bytes) -> None:
    with contextlib.suppress(OSError):
        channel.sendall(data)
        channel.shutdown_write()


def _drain(receive, into: list[bytes]) -> None:
    while chunk := receive(1 << 16):
        into.append(chunk)


def _drain_beside(receive, into: list[bytes]) -> None:
    """``_drain`` in a thread of its own: what fails is told by who waits for the command."""
    with contextlib.suppress(Exception):
        _drain(receive, into)


@contextlib.contextmanager
def _closed_after(channel: "paramiko.Channel", secs: float) -> Iterator[None]:
    """Closes a channel in which a call has no deadline of its own, and so ends that call."""
    given_up = threading.Event()

    def give_up() -> None:
        given_up.set()
        channel.get_transport().close()

    timer = threading.Timer(secs, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if given_up.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _errnos(error: Exception) -> set[int]:
    """The system's error numbers behind an error of one or several addresses."""
    causes = [error, *getattr(error, "errors", {}).values()]
    return {cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno}


def _known_name(target: Target) -> str:
    if target.port == 22:
        return target.hostname
    return shlex.quote(f"[{target.hostname}]:{target.port}")


def _fingerprint(key: "paramiko.PKey") -> str:
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def _user() -> str:
    import getpass

    return getpass.getuser()
