"""Unrolls as they travel: compressed, checked against the run's specification, taken apart."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from impala_torch.endpoint import blocks
from impala_torch.endpoint.messages import MAX_ENVS, MAX_HEADER_BYTES, BadMessage, Buffer
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.structures import LARGEST_REWARD, LARGEST_VALUE, Unroll, unroll_layout


class CompressedUnroll(NamedTuple):
    """An unroll of E environments off the wire: checked, its observations still compressed."""

    fields: dict[str, np.ndarray]  # all of ``Unroll`` but the observation, with their E axis
    blocks: list[Buffer]  # E of them: an environment's observations, [T + K, *shape]


class UnrollCodec:
    """Unrolls of E environments <-> buffers. Not to be shared between threads.

    The first buffer is a block (``blocks``) of all fields but the observation, one after the other
    in the order of ``Unroll``, each as C-contiguous little-endian array; then one block of
    observations follows for each environment.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        layout = unroll_layout(spec.environment, spec.unroll_length, spec.state_size)
        before, after, dtype = layout.pop("observation")
        self._layout = layout  # of what is in the first buffer
        self._encoder = blocks.Encoder()
        self._decoder = blocks.Decoder()
        self._block_bytes = math.prod((*before, *after)) * np.dtype(dtype).itemsize

    def largest_frame(self) -> int:
        """Bytes of the largest frame that an honest actor, or a relay, may send."""
        sizes = (self._block_bytes, self._fields_bytes(MAX_ENVS))
        return max(MAX_HEADER_BYTES, *map(blocks.most_bytes, sizes))

    def encode(self, unroll: Unroll[np.ndarray]) -> list[bytes]:
        fields = {name: getattr(unroll, name) for name in self._layout}
        return [self._encode_fields(fields), *self._encoder.encode(unroll.observation)]

    def encode_some(self, unroll: CompressedUnroll, envs: Sequence[int]) -> list[Buffer]:
        """The buffers of some environments, as if an actor of these alone had sent them."""
        some = list(envs)
        fields = {
            name: array[:, some] if self._layout[name][0] else array[some]
            for name, array in unroll.fields.items()
        }
        return [self._encode_fields(fields), *(unroll.blocks[env] for env in some)]

    def _encode_fields(self, fields: dict[str, np.ndarray]) -> bytes:
        raw = [np.ascontiguousarray(fields[name]).tobytes() for name in self._layout]
        return self._encoder.compress(b"".join(raw))

    def decode_fields(
        self, buffers: Sequence[Buffer], num_envs: int, version: int
    ) -> CompressedUnroll:
        """Checks the buffers of an unroll and reads all but its observations.

        Args:
          buffers: what followed the header.
          num_envs: E, from the sender's hello.
          version: the newest weights' version; what acted cannot be newer.

        Returns:
          Views of the first buffer, and the blocks.

        Raises:
          BadMessage: a length or a value is off.
        """
        if len(buffers) != 1 + num_envs:
            raise BadMessage(f"unroll of {len(buffers)} buffers instead of {1 + num_envs}")
        fields = self._read_fields(buffers[0], num_envs)
        if (fields["done"] > 1).any():
            raise BadMessage("unroll has a done that is neither 0 nor 1")
        fields["done"] = fields["done"].view(bool)
        actions = self.spec.environment.num_actions
        for name, high in (
            ("action", actions - 1),
            ("initial_action", actions - 1),
            ("weights_version", version),
        ):
            if (fields[name] < 0).any() or (fields[name] > high).any():
                raise BadMessage(f"unroll has {name} outside 0 to {high}")
        for name in ("reward", "final_value", "policy_logits", "baseline", "agent_state"):
            if not np.isfinite(fields[name]).all():
                raise BadMessage(f"unroll has {name} that is not finite")
        for name, largest in (("reward", LARGEST_REWARD), ("final_value", LARGEST_VALUE)):
            if (np.abs(fields[name]) > largest).any():
                raise BadMessage(f"unroll has {name} beyond {largest:.0g} in size")
        for block in buffers[1:]:
            try:
                blocks.check_size(block, self._block_bytes)
            except ValueError as error:
                raise BadMessage(f"observations: {error}") from error
        return CompressedUnroll(fields, list(buffers[1:]))

    def _fields_bytes(self, num_envs: int) -> int:
        return num_envs * sum(
            math.prod((*before, *after)) * np.dtype(dtype).itemsize
            for before, after, dtype in self._layout.values()
        )

    def _read_fields(self, buffer: Buffer, num_envs: int) -> dict[str, np.ndarray]:
        shapes = {
            name: (*before, num_envs, *after) for name, (before, after, _) in self._layout.items()
        }
        try:
            data, offset = self._decoder.decompress(buffer, self._fields_bytes(num_envs)), 0
        except ValueError as error:
            raise BadMessage(f"unroll fields: {error}") from error
        fields: dict[str, Any] = {}
        for name, (_, _, dtype) in self._layout.items():
            kind = np.uint8 if dtype == "bool" else dtype  # a bool may only be 0 or 1
            raw = np.frombuffer(data, kind, math.prod(shapes[name]), offset)
            offset += raw.nbytes
            fields[name] = raw.reshape(shapes[name])
        return fields

    def decode_column(
        self, unroll: CompressedUnroll, env: int, out: Unroll[np.ndarray], column: int
    ) -> None:
        """Writes environment ``env`` of what ``decode_fields`` gave to a column of ``out``.

        Raises:
          BadMessage: its block of observations is damaged.
        """
        try:
            self._decoder.decode(unroll.blocks[env], out.observation[:, column])
        except ValueError as error:
            raise BadMessage(f"observations: {error}") from error
        rows = out.observation[:, column]
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise BadMessage("unroll has observation that is not finite")
        for name, (before, _, _) in self._layout.items():
            if before:
                getattr(out, name)[:, column] = unroll.fields[name][:, env]
            else:
                getattr(out, name)[column] = unroll.fields[name][env]
