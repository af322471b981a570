"""Sockets of one machine (``ipc://`` and a path), which file permissions protect.

ZeroMQ takes a path over from whoever listens there, so what is to be served is looked at before.
"""

import os
import pathlib
import socket
import stat

from impala_torch.flags.addresses import IPC
from impala_torch.flags.checks import MAX_SOCKET_PATH_BYTES
from impala_torch.flags.errors import UserError


def path_of(address: str) -> pathlib.Path:
    """The path of an ``ipc://`` address; ``~`` is the home directory."""
    return pathlib.Path(os.path.expanduser(address.removeprefix(IPC)))


def expand(address: str) -> str:
    """``ipc://~/...`` with the home directory; ZeroMQ does not know it. Empty stays empty."""
    return f"{IPC}{path_of(address)}" if address else ""


def check_private(address: str, flag: str) -> None:
    """Raises UserError unless only this user can open what is in the folder of ``address``."""
    folder = path_of(address).parent
    try:
        found = folder.stat()
    except OSError as error:
        raise UserError(
            f"{flag}={address}: the folder {folder} cannot be used: {error.strerror}"
        ) from error
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            f"{flag}={address}: others can open the folder {folder}: make one that is yours alone "
            "('mkdir -m 700 FOLDER')"
        )


def private_directory(directory: str) -> pathlib.Path:
    """Makes ``directory`` if need be. Raises UserError if others could put sockets there."""
    path = pathlib.Path(directory)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise UserError(f"the directory {directory} cannot be made: {error.strerror}") from error
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"others can write to the directory {directory}: it must be private")
    return path


def free_path(path: pathlib.Path, server: str) -> pathlib.Path:
    """Removes a socket that a dead ``server`` left. Raises UserError if it cannot be served."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise UserError(f"{path}: a socket's path may have {MAX_SOCKET_PATH_BYTES} bytes")
    if not path.is_socket():
        if path.exists():
            raise UserError(f"{path} exists and is not a socket")
        return path
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except ConnectionError:
            path.unlink(missing_ok=True)
            return path
        except OSError as error:
            raise UserError(f"{path} cannot be used: {error}") from error
    raise UserError(f"another {server} serves {path}")
