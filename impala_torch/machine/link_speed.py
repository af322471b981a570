"""How fast this machine's network interfaces are."""

import fcntl
import pathlib
import socket
import struct

_SIOCGIFADDR = 0x8915


def link_bytes_per_sec(ip: str) -> float | None:
    """Bytes per second that the interface with the address ``ip`` can carry.

    Returns:
      None where the kernel does not know: of the loopback, and of most virtual interfaces.
    """
    try:
        address = socket.gethostbyname(ip)
        name = next((name for _, name in socket.if_nameindex() if _address(name) == address), "")
        megabits = int(pathlib.Path(f"/sys/class/net/{name}/speed").read_text()) if name else 0
    except (OSError, ValueError):
        return None
    return megabits * 1e6 / 8 if megabits > 0 else None


def _address(name: str) -> str:
    """The IPv4 address of an interface; empty if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", name.encode()[:15])
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
