"""How this process asks the system for memory."""

import ctypes
import logging

log = logging.getLogger(__name__)

# From <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_LARGEST = 2**31 - 1


def keep_freed() -> None:
    """Makes malloc keep what is freed, for the rest of this process's life.

    An update's tensors are tens of megabytes. By default glibc gives such back to the kernel when
    it is freed and gets zeroed pages at the next update, a page fault each: a fifth of an update
    on a CPU (sandbox/speed.md). Elsewhere than on glibc nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library: only slower
        log.debug("this system's malloc takes no options")
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
    mallopt(_TOP_PAD, 64 << 20)
    # Heaps of other threads' arenas end at 64 MB, less than autograd's thread needs.
    mallopt(_ARENA_MAX, 1)
