"""The wire format: every message of the parameter endpoint, declared once.

A message is a msgpack map (the header, with its ``type``) and, for some types, raw buffers after
it. An actor's DEALER socket talks to the learner's ROUTER socket:

| from    | type      | header                                                    | buffers        |
| ------- | --------- | --------------------------------------------------------- | -------------- |
| actor   | hello     | protocol, spec, task, num_envs, host, pid; role:          |                |
|         |           | "evaluator" of one that only pulls weights (else absent)  |                |
| learner | welcome   | worker_set, run_id, instance, layout, dtype (of weights)  |                |
| learner | refused   | reason: in words; banned: it was a bad message            |                |
| actor   | pull      | version: of the weights it has, -1 for none               |                |
| learner | weights   | version, instance, frames: trained for until then         | flat weights   |
| learner | same      |                                                           |                |
| actor   | ready     | an unroll waits to be sent                                |                |
| learner | credit    | one message of unrolls may be sent                        |                |
| learner | wait      | the queue is full: a credit follows when there is room    |                |
| actor   | unroll    | episodes: [[return, frames, raw return, raw frames], ...] | fields, blocks |
|         |           | waited: seconds spent waiting for the learner since the   |                |
|         |           | unroll before (may be absent)                             |                |
| learner | stop      | the run has ended; the actor ends                         |                |
| learner | unknown   | no hello yet (the learner was restarted): say it again    |                |
| anyone  | status    |                                                           |                |
| learner | status    | status: the endpoint's numbers, see ``server.status``     |                |

``instance`` is another one at each start of a learner. Versions count a learner's updates, so a
restarted learner may give weights other than its predecessor's the same version.

An evaluator has no place in --actor_hosts: it gets no credit, is counted with no actor, and says
hello with task 0. Relays leave ``frames`` out; evaluators do without relays.

A relay (``relay``) carries the messages of many actors over one connection, each as

    b"", actor_id, header, *buffers

in both directions. A header is never empty, so an empty first frame marks a relayed message. The
relay chooses the ids, of 1 to MAX_ACTOR_ID_BYTES bytes; with the connection's identity they make
the ``Route`` by which the learner knows a sender: what one relayed actor does wrong is not the
others' fault.

Nothing is unpickled. Every length and value of an unroll is checked against the run's own
specification before anything is allocated for it.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from impala_torch.endpoint import blocks
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.structures import (
    EpisodeResult,
    Unroll,
    unroll_layout,
)

PROTOCOL = 2
MAX_HEADER_BYTES = 1 << 20
MAX_ENVS = 4096  # of one actor
EVALUATOR = "evaluator"  # the role of who only pulls weights
MAX_ACTOR_ID_BYTES = 64

Buffer = bytes | memoryview
Route = tuple[bytes, bytes]  # the connection's identity, the relayed actor's id (b"" if direct)


class BadMessage(Exception):
    """A message that does not follow the format; it costs its sender the connection."""


def encode(kind: str, **fields: Any) -> bytes:
    """A header."""
    return msgpack.packb({"type": kind, **fields})


def decode(frame: Buffer) -> dict[str, Any]:
    """Reads a header. Raises BadMessage."""
    if len(frame) > MAX_HEADER_BYTES:
        raise BadMessage(f"header of {len(frame)} bytes")
    try:
        header = msgpack.unpackb(frame)
    except Exception as error:  # msgpack raises many kinds, all of them the sender's fault
        raise BadMessage(f"header is not msgpack: {type(error).__name__}") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        raise BadMessage("header is not a map with a type")
    return header


def field(header: dict[str, Any], name: str, kind: type, low: int = 0, high: int = 1 << 62) -> Any:
    """A field of a header, checked for its type and, if an int, range. Raises BadMessage."""
    value = header.get(name)
    good = type(value) is kind and (not isinstance(value, int) or low <= value <= high)
    if not good:
        raise BadMessage(f"'{header['type']}' has a bad {name}")
    return value


def wrap(actor_id: bytes) -> list[bytes]:
    """The frames before the header: of a direct message (without ``actor_id``) none."""
    return [b"", actor_id] if actor_id else []


def unwrap(parts: list[memoryview]) -> tuple[bytes, list[memoryview]]:
    """Undoes ``wrap``: the actor's id (b"" if direct) and the header with its buffers.

    Raises:
      BadMessage: there is no header, or the id is none.
    """
    if not parts:
        raise BadMessage("empty message")
    if len(parts[0]):
        return b"", parts
    if len(parts) < 3 or not 1 <= len(parts[1]) <= MAX_ACTOR_ID_BYTES:
        raise BadMessage("neither a header nor a relayed message with the id of its actor")
    return bytes(parts[1]), parts[2:]


# --- unrolls ----------------------------------------------------------------------------------


class UnrollCodec:
    """Unrolls of E environments <-> buffers. Not to be shared between threads.

    The first buffer is a block (``frames``) of all fields but the observation, one after the other
    in the order of ``Unroll``, each as C-contiguous little-endian array; then one block of
    observations follows for each environment.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self._layout = unroll_layout(spec.environment, spec.unroll_length, spec.state_size)
        self._encoder = blocks.Encoder()
        self._decoder = blocks.Decoder()
        before, after, dtype = self._layout["observation"]
        self._block_shape = (*before, *after)
        self._block_bytes = math.prod(self._block_shape) * np.dtype(dtype).itemsize

    def encode(self, unroll: Unroll) -> list[bytes]:
        fields = [
            np.ascontiguousarray(getattr(unroll, name)).tobytes()
            for name in self._layout
            if name != "observation"
        ]
        fields_block = self._encoder.compress(b"".join(fields))
        return [fields_block, *self._encoder.encode(unroll.observation)]

    def decode_fields(self, buffers: Sequence[Buffer], num_envs: int, version: int) -> Unroll:
        """Checks the buffers of an unroll and reads all but its observations.

        Args:
          buffers: what followed the header.
          num_envs: E, from the sender's hello.
          version: the newest weights' version; what acted cannot be newer.

        Returns:
          An Unroll of views of the first buffer, with the blocks as ``observation``.

        Raises:
          BadMessage: a length or a value is off.
        """
        if len(buffers) != 1 + num_envs:
            raise BadMessage(f"unroll of {len(buffers)} buffers instead of {1 + num_envs}")
        values: dict[str, Any] = {"observation": list(buffers[1:])}
        expected = sum(
            math.prod((*before, num_envs, *after)) * np.dtype(dtype).itemsize
            for name, (before, after, dtype) in self._layout.items()
            if name != "observation"
        )
        try:
            data, offset = self._decoder.decompress(buffers[0], expected), 0
        except ValueError as error:
            raise BadMessage(f"unroll fields: {error}") from error
        for name, (before, after, dtype) in self._layout.items():
            if name == "observation":
                continue
            shape = (*before, num_envs, *after)
            count = math.prod(shape)
            raw = np.frombuffer(data, np.uint8 if dtype == "bool" else dtype, count, offset)
            offset += raw.nbytes
            values[name] = raw.reshape(shape)
        if (values["done"] > 1).any():
            raise BadMessage("unroll has a done that is neither 0 nor 1")
        values["done"] = values["done"].view(bool)
        actions = self.spec.environment.num_actions
        for name, high in (
            ("action", actions - 1),
            ("initial_action", actions - 1),
            ("weights_version", version),
        ):
            if (values[name] < 0).any() or (values[name] > high).any():
                raise BadMessage(f"unroll has {name} outside 0 to {high}")
        for name in ("reward", "final_value", "policy_logits", "baseline", "agent_state"):
            if not np.isfinite(values[name]).all():
                raise BadMessage(f"unroll has {name} that is not finite")
        for block in values["observation"]:
            try:
                blocks.check_size(block, self._block_bytes)
            except ValueError as error:
                raise BadMessage(f"observations: {error}") from error
        return Unroll(**values)

    def decode_column(self, unroll: Unroll, env: int, out: Unroll, column: int) -> None:
        """Writes environment ``env`` of what ``decode_fields`` gave to a column of ``out``.

        Raises:
          BadMessage: its block of observations is damaged.
        """
        try:
            self._decoder.decode(unroll.observation[env], out.observation[:, column])
        except ValueError as error:
            raise BadMessage(f"observations: {error}") from error
        rows = out.observation[:, column]
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise BadMessage("unroll has observation that is not finite")
        for name, (before, _, _) in self._layout.items():
            if name == "observation":
                continue
            if before:
                getattr(out, name)[:, column] = getattr(unroll, name)[:, env]
            else:
                getattr(out, name)[column] = getattr(unroll, name)[env]


def encode_episodes(episodes: Sequence[EpisodeResult]) -> list[list[float | None]]:
    return [list(episode) for episode in episodes]


def decode_episodes(header: dict[str, Any]) -> list[EpisodeResult]:
    """Raises BadMessage."""
    episodes = []
    for values in field(header, "episodes", list):
        good = (
            isinstance(values, list)
            and len(values) == 4
            and all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values)
            and None not in values[:2]
        )
        if not good:
            raise BadMessage("unroll has a bad episode")
        episodes.append(EpisodeResult(*values))
    return episodes


def decode_waited(header: dict[str, Any]) -> float:
    """Seconds that the actor waited for its unroll. Raises BadMessage."""
    waited = header.get("waited", 0.0)
    if type(waited) not in (int, float) or not (math.isfinite(waited) and waited >= 0):
        raise BadMessage("'unroll' has a bad waited")
    return float(waited)
