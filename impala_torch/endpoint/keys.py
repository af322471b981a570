"""Who may connect: CURVE keys of a run, and the rule that an open endpoint is a local one.

A key file holds the run's two key pairs: the endpoint's, by which actors know that they speak to
their learner, and the actors', by which the learner knows that they may. Traffic is encrypted
and authenticated by CurveZMQ. Make one with

    python -m impala_torch.endpoint.keys run.key

and give every process of the run a copy of it as --key_file.
"""

import ipaddress
import json
import os
import pathlib
import re
import socket
import stat
import sys
from typing import NamedTuple

import zmq
import zmq.utils.z85

from impala_torch.config import UserError, parse_address

_Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


class RunKeys(NamedTuple):
    """The keys of a run, each 40 characters of Z85. ``repr`` shows none of them."""

    server_public: bytes
    server_secret: bytes
    actor_public: bytes
    actor_secret: bytes

    def __repr__(self) -> str:
        return "RunKeys(...)"


def make(path: str) -> None:
    """Writes a new key file, readable by its owner only. Raises UserError if it exists."""
    pairs = (*zmq.curve_keypair(), *zmq.curve_keypair())
    values = {name: key.decode("ascii") for name, key in zip(RunKeys._fields, pairs, strict=True)}
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UserError(f"cannot make the key file {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        json.dump(values, file)


def load(path: str) -> RunKeys:
    """Reads a key file. Raises UserError if it is missing, readable by others or damaged."""
    try:
        mode = os.stat(path).st_mode
        text = pathlib.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--key_file={path} cannot be read: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"--key_file={path} can be read by others: 'chmod 600 {path}'")
    try:
        values = json.loads(text)
        keys = [values[name] for name in RunKeys._fields]
    except (ValueError, KeyError, TypeError):
        keys = []
    if not keys or not all(isinstance(key, str) and _Z85_KEY.fullmatch(key) for key in keys):
        raise UserError(
            f"--key_file={path} is not a key file: make one with "
            "'python -m impala_torch.endpoint.keys FILE'"
        )
    return RunKeys(*(key.encode("ascii") for key in keys))


def is_loopback(host: str) -> bool:
    """Whether everything that ``host`` resolves to is this machine alone."""
    try:
        found = socket.getaddrinfo(host, None, family=socket.AF_INET)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(info[4][0]).is_loopback for info in found)


def for_address(address: str, key_file: str) -> RunKeys | None:
    """The keys to use at ``address`` (``ip:port``); None where it may stay open.

    Raises:
      UserError: the address is not a loopback one and there is no key file.
    """
    if key_file:
        return load(key_file)
    host, _ = parse_address(address, "--learner_host")
    if is_loopback(host):
        return None
    raise UserError(
        f"--learner_host={address} is not a loopback address, so it needs --key_file: make one "
        "with 'python -m impala_torch.endpoint.keys run.key' and copy it to every host"
    )


def zmq_address(address: str) -> str:
    """``ip:port`` as ZeroMQ wants it: a numeric address, so that binding works by name too."""
    host, port = parse_address(address, "--learner_host")
    try:
        numeric = socket.gethostbyname(host)
    except OSError as error:
        raise UserError(f"--learner_host={address}: the host '{host}' is not known") from error
    return f"tcp://{numeric}:{port}"


class Authenticator:
    """Answers ZeroMQ's question whether a client's key may connect, in the endpoint's thread.

    libzmq asks over an inproc socket (ZAP, rfc.zeromq.org/27); ``socket`` must be polled and
    ``handle`` called when it is readable.
    """

    def __init__(self, context: zmq.Context, keys: RunKeys) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._allowed = zmq.utils.z85.decode(keys.actor_public)
        self.denied = 0

    def handle(self) -> None:
        request = self.socket.recv_multipart()
        # version, request id, domain, address, identity, mechanism, credentials (the raw key)
        version, request_id = request[0], request[1]
        allowed = len(request) == 7 and request[5] == b"CURVE" and request[6] == self._allowed
        self.denied += not allowed
        verdict = (b"200", b"OK") if allowed else (b"400", b"unknown key")
        self.socket.send_multipart([version, request_id, *verdict, b"actor", b""])

    def close(self) -> None:
        self.socket.close()


def secure_server(server: zmq.Socket, keys: RunKeys) -> None:
    """Makes ``server`` refuse whoever does not hold the run's keys. Call before ``bind``."""
    server.curve_server = True
    server.curve_secretkey = keys.server_secret
    server.curve_publickey = keys.server_public
    server.zap_domain = b"impala_torch"


def secure_client(client: zmq.Socket, keys: RunKeys) -> None:
    """Gives ``client`` the run's keys. Call before ``connect``."""
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
