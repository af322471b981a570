"""Addresses as users write them: ``ip:port``, or ``ipc://`` and a path on this machine."""

from impala_torch.flags.errors import UserError

IPC = "ipc://"


def is_ipc(address: str) -> bool:
    """Whether it is a path of this machine, and no ``ip:port``."""
    return address.startswith(IPC)


def parse_address(address: str, source: str) -> tuple[str, int]:
    """Splits ``ip:port``. Raises UserError naming ``source`` (a flag, or a file's line)."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host:
        raise UserError(f"{source}: '{address}' is not of the form ip:port")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{source}: the port '{port}' of '{address}' is not a number of 1 to 65535")
    return host, int(port)


def host_of(address: str, source: str) -> str:
    """The host of an address, which is this one for ``ipc://``. Raises as ``parse_address``."""
    return "localhost" if is_ipc(address) else parse_address(address, source)[0]
