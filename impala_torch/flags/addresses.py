"""Addresses as users write them: ``ip:port``."""

from impala_torch.flags.errors import UserError


def parse_address(address: str, source: str) -> tuple[str, int]:
    """Splits ``ip:port``. Raises UserError naming ``source`` (a flag, or a file's line)."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host:
        raise UserError(f"{source}: '{address}' is not of the form ip:port")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{source}: the port '{port}' of '{address}' is not a number of 1 to 65535")
    return host, int(port)
