"""Lossless coding of observations, and of unrolls' other fields, for the wire.

Each environment's observations of an unroll travel as one zstd block in time order. What repeats
from step to step (most of an Atari screen) then costs next to nothing, and so do the K - 1
frames that an unroll repeats from the one before.
"""

import numpy as np
import zstandard

LEVEL = 1  # sandbox/FAQ.md: higher levels save few bytes and cost the actor's time


class Encoder:
    """Compresses. Not to be shared between threads."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_content_size=True, write_checksum=True
        )

    def encode(self, observation: np.ndarray) -> list[bytes]:
        """``observation`` [N, E, *shape] -> E blocks, one an environment, each N in time order."""
        blocks = np.ascontiguousarray(np.swapaxes(observation, 0, 1))
        return [self.compress(block.data) for block in blocks]

    def compress(self, data: bytes | memoryview) -> bytes:
        """One block, which says how many bytes it holds."""
        return self._compressor.compress(data)


class Decoder:
    """Takes blocks apart. Not to be shared between threads."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def decode(self, block: bytes | memoryview, out: np.ndarray) -> None:
        """Writes one environment's observations to ``out`` [N, *shape].

        Raises:
          ValueError: the block is damaged or of another size; nothing was allocated for it.
        """
        data = self.decompress(block, out.nbytes)
        out[...] = np.frombuffer(data, out.dtype).reshape(out.shape)

    def decompress(self, block: bytes | memoryview, num_bytes: int) -> bytes:
        """What ``compress`` was given, which must have been ``num_bytes``. Raises as ``decode``."""
        check_size(block, num_bytes)
        try:
            return self._decompressor.decompress(
                block, max_output_size=num_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise ValueError(f"damaged block: {error}") from error


def check_size(block: bytes | memoryview, num_bytes: int) -> None:
    """Raises ValueError unless ``block`` says that it holds exactly ``num_bytes``."""
    try:
        size = zstandard.frame_content_size(block)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a block: {error}") from error
    if size != num_bytes:
        raise ValueError(f"block of {size} bytes instead of {num_bytes}")


def most_bytes(num_bytes: int) -> int:
    """How large a block of ``num_bytes`` can be: what does not compress grows a little."""
    return num_bytes + num_bytes // 256 + 128  # ZSTD_compressBound, and the checksum
