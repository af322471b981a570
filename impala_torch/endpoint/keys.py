"""Who may connect: CURVE keys of a run, and the rule that an open endpoint is a local one.

A run has a key pair of the endpoints, by which actors know that they speak to their learner, and
key pairs of those who connect, by which a learner knows that they may. Traffic is encrypted and
authenticated by CurveZMQ. A key file holds what one side needs:

* everything, with one pair for all actors, as made by
  ``python -m impala_torch.endpoint.keys run.key`` for runs started by hand;
* a learner's: the endpoints' pair, the public keys that it accepts, with their names and the tasks
  that each may have, and a pair for what it starts itself beside it (its evaluator);
* an actor's: the endpoints' public key and a pair of its own.

The last two are the frontend's, which makes new ones for every run (``make_for_run``).
"""

import dataclasses
import ipaddress
import json
import os
import pathlib
import re
import socket
import stat
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import zmq
import zmq.utils.z85

from impala_torch.endpoint import local_sockets
from impala_torch.flags.addresses import is_ipc, parse_address
from impala_torch.flags.errors import UserError

_Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
# A worker set's number, and a task of an actor in it.
Task = tuple[int, int]

_NAMES = ("server_public", "server_secret", "actor_public", "actor_secret")


@dataclasses.dataclass(frozen=True, repr=False)
class RunKeys:
    """Keys of a run, each 40 characters of Z85, as far as this side has them. ``repr`` has none."""

    server_public: bytes
    server_secret: bytes | None = None
    actor_public: bytes | None = None
    actor_secret: bytes | None = None
    accepted: Mapping[bytes, str] = dataclasses.field(default_factory=dict)  # names by public key
    # By name what actors with its key may be; any where the name is missing.
    tasks: Mapping[str, Collection[Task]] = dataclasses.field(default_factory=dict)

    def may_act(self, name: str, worker_set: int, task: int) -> bool:
        """Whether an actor with the key of that name may have a task."""
        return name not in self.tasks or (worker_set, task) in self.tasks[name]

    def __repr__(self) -> str:
        return "RunKeys(...)"


def make(path: str) -> None:
    """Writes a new key file with everything, for its owner only. Raises UserError if it exists."""
    pairs = (*zmq.curve_keypair(), *zmq.curve_keypair())
    write(path, {name: key.decode("ascii") for name, key in zip(_NAMES, pairs, strict=True)})


def make_for_run(
    names: Iterable[str] | Mapping[str, Iterable[Task]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """New keys of a run, as contents for ``write``.

    Args:
      names: of those who connect; each gets a pair of its own. With tasks, a name's key is good
        for actors of these alone, and none for one without any.

    Returns:
      What learners hold, and by name what the others hold.
    """
    server_public, server_secret = (key.decode("ascii") for key in zmq.curve_keypair())
    accepted: dict[str, str] = {}

    def pair(name: str) -> dict[str, Any]:
        public, secret = (key.decode("ascii") for key in zmq.curve_keypair())
        accepted[public] = name
        return {"server_public": server_public, "actor_public": public, "actor_secret": secret}

    learner = {**pair("learner"), "server_secret": server_secret, "accepted": accepted}
    if isinstance(names, Mapping):
        tasks = {name: [list(one) for one in names[name]] for name in names}
        learner["tasks"] = {"learner": [], **tasks}  # what a learner starts is no actor
    return learner, {name: pair(name) for name in names}


def write(path: str, content: Mapping[str, Any]) -> None:
    """Writes a key file that only its owner can read. Raises UserError if there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UserError(f"cannot make the key file {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)


def load(path: str) -> RunKeys:
    """Reads a key file; ``~`` is the home directory.

    Raises:
      UserError: it is missing, readable by others or damaged.
    """
    path = os.path.expanduser(path)
    try:
        mode = os.stat(path).st_mode
        text = pathlib.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--key_file={path} cannot be read: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"--key_file={path} can be read by others: 'chmod 600 {path}'")
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"--key_file={path} is not a key file: make one with "
            "'python -m impala_torch.endpoint.keys FILE'"
        ) from None


def _parse(content: dict[str, Any]) -> RunKeys:
    """Raises one of several errors where the content is not a key file's."""
    known = {name: _key(content[name]) for name in _NAMES if name in content}
    accepted = {_key(key): str(name) for key, name in content.get("accepted", {}).items()}
    tasks = {
        str(name): frozenset((int(worker_set), int(task)) for worker_set, task in pairs)
        for name, pairs in content.get("tasks", {}).items()
    }
    keys = RunKeys(**known, accepted=accepted, tasks=tasks)
    if (keys.actor_public is None) != (keys.actor_secret is None):
        raise ValueError("half a pair")
    if keys.server_secret is not None and keys.actor_public is not None:
        accepted.setdefault(keys.actor_public, "actor")
    return keys


def _key(text: Any) -> bytes:
    if not _Z85_KEY.fullmatch(text):
        raise ValueError("not a key")
    return text.encode("ascii")


def is_loopback(host: str) -> bool:
    """Whether everything that ``host`` resolves to is this machine alone."""
    try:
        found = socket.getaddrinfo(host, None, family=socket.AF_INET)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(info[4][0]).is_loopback for info in found)


def for_address(address: str, key_file: str) -> RunKeys | None:
    """The keys to use at ``address`` (``ip:port``, or ``ipc://``); None where it needs none.

    Raises:
      UserError: the address is not a loopback one and there is no key file, or it is ``ipc://`` in
        a folder that others can open.
    """
    if is_ipc(address):
        local_sockets.check_private(address, "--learner_host")
    if key_file:
        return load(key_file)
    if is_ipc(address):
        return None
    host, _ = parse_address(address, "--learner_host")
    if is_loopback(host):
        return None
    raise UserError(
        f"--learner_host={address} is not a loopback address, so it needs --key_file: make one "
        "with 'python -m impala_torch.endpoint.keys run.key' and copy it to every host (the "
        "frontend does that by itself)"
    )


def zmq_address(address: str) -> str:
    """An address as ZeroMQ wants it: a numeric one, so that binding works by name too."""
    if is_ipc(address):
        return local_sockets.expand(address)
    host, port = parse_address(address, "--learner_host")
    try:
        numeric = socket.gethostbyname(host)
    except OSError as error:
        raise UserError(f"--learner_host={address}: the host '{host}' is not known") from error
    return f"tcp://{numeric}:{port}"


class Authenticator:
    """Answers ZeroMQ's question whether a client's key may connect, in the endpoint's thread.

    libzmq asks over an inproc socket (ZAP, rfc.zeromq.org/27); ``socket`` must be polled and
    ``handle`` called when it is readable. The name of an accepted key becomes the "User-Id" of
    what arrives over the connection.
    """

    def __init__(self, context: zmq.Context, keys: RunKeys) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._names = {
            zmq.utils.z85.decode(key): name.encode() for key, name in keys.accepted.items()
        }
        self.denied = 0

    def handle(self) -> None:
        request = self.socket.recv_multipart()
        # version, request id, domain, address, identity, mechanism, credentials (the raw key)
        version, request_id = request[0], request[1]
        name = None
        if len(request) == 7 and request[5] == b"CURVE":
            name = self._names.get(request[6])
        self.denied += name is None
        verdict = (b"400", b"unknown key", b"") if name is None else (b"200", b"OK", name)
        self.socket.send_multipart([version, request_id, *verdict, b""])

    def close(self) -> None:
        self.socket.close()


def secure_server(server: zmq.Socket, keys: RunKeys) -> None:
    """Makes ``server`` refuse whoever does not hold an accepted key. Call before ``bind``.

    Raises:
      UserError: the keys are an actor's.
    """
    if keys.server_secret is None:
        raise UserError("--key_file is an actor's: a learner needs one with the endpoint's keys")
    server.curve_server = True
    server.curve_secretkey = keys.server_secret
    server.curve_publickey = keys.server_public
    server.zap_domain = b"impala_torch"


def secure_client(client: zmq.Socket, keys: RunKeys) -> None:
    """Gives ``client`` its keys. Call before ``connect``.

    Raises:
      UserError: there is none of their own among them.
    """
    if keys.actor_secret is None:
        raise UserError("--key_file is a learner's: an actor needs one with a pair of its own")
    client.curve_serverkey = keys.server_public
    client.curve_secretkey = keys.actor_secret
    client.curve_publickey = keys.actor_public


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m impala_torch.endpoint.keys FILE", file=sys.stderr)
        sys.exit(2)
    try:
        make(sys.argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{sys.argv[1]}: copy it to each host of the run and name it as --key_file")


if __name__ == "__main__":
    main()
