"""The wire format: every message of the parameter endpoint, declared once.

A message is a msgpack map (the header, with its ``type``) and, for some types, raw buffers after
it. An actor's DEALER socket talks to the learner's ROUTER socket:

| from    | type      | header                                                    | buffers        |
| ------- | --------- | --------------------------------------------------------- | -------------- |
| actor   | hello     | protocol, spec, task, num_envs, host, pid; role:          |                |
|         |           | "evaluator" of one that only pulls weights (else absent)  |                |
| learner | welcome   | worker_set, run_id, instance, layout, dtype (of weights), |                |
|         |           | start: another one for each process of a task             |                |
| learner | refused   | reason: in words; banned: it was a bad message            |                |
| actor   | pull      | version: of the weights it has, -1 for none               |                |
| learner | weights   | version, instance, frames: trained for until then         | flat weights   |
| learner | same      |                                                           |                |
| actor   | ready     | an unroll waits to be sent                                |                |
| learner | credit    | one message of unrolls may be sent                        |                |
| learner | wait      | the queue is full: a credit follows when there is room;   |                |
|         |           | or nothing but that the learner looks who is there        |                |
| actor   | alive     | it plays on; there is no answer                           |                |
| actor   | unroll    | episodes: [[return, frames, raw return, raw frames], ...] | fields, blocks |
|         |           | waited: seconds spent waiting for the learner since the   |                |
|         |           | unroll before (may be absent)                             |                |
| learner | stop      | the run has ended; the actor ends                         |                |
| relay   | gone      | the actor in whose name this comes has left               |                |
| learner | unknown   | no hello yet (the learner was restarted): say it again    |                |
| anyone  | status    |                                                           |                |
| learner | status    | status: the endpoint's numbers, see ``server.status``     |                |

Learners of one run give each other unrolls over MPI (``learning.sharing``), several at a time:

| learner | surplus   | sizes: [[bytes of fields, of block, of block, ...], ...], | all, one after |
|         |           | a list for the unrolls of one actor's message; origins:   | the other      |
|         |           | who acted them, in words                                  |                |

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

import reprlib
from collections.abc import Sequence
from typing import Any

import msgpack

from impala_torch.structures import (
    EpisodeResult,
)

PROTOCOL = 3
MAX_HEADER_BYTES = 1 << 20
MAX_ENVS = 4096  # of one actor
EVALUATOR = "evaluator"  # the role of who only pulls weights
MAX_ACTOR_ID_BYTES = 64
ALIVE_SECS = 5.0  # between an actor's signs of life while it plays
MAX_WORDS = 200  # characters of what is said about a message, wherever it is said
MAX_WAITED_SECS = 1e9  # between two unrolls; more is no time
MAX_NUMBER = 1e30  # of an episode: sums of many such are still numbers, in single precision too
# A peer whose host vanished without a word is noticed by these, at either end of a connection.
HEARTBEAT_SECS, HEARTBEAT_TIMEOUT_SECS = 5.0, 20.0

Buffer = bytes | memoryview
Route = tuple[bytes, bytes]  # the connection's identity, the relayed actor's id (b"" if direct)


class BadMessage(Exception):
    """A message that does not follow the format; it costs its sender the connection."""


class _Quotes(reprlib.Repr):
    """``repr`` that is short, and neither deep nor slow, whatever the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxlong = self.maxother = 40

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value[:20])


_QUOTES = _Quotes()


def quoted(value: Any) -> str:
    """What a message held, as it may be said: at most 60 characters, all of them printable."""
    return cut(_QUOTES.repr(value), 60)


def cut(words: str, characters: int = MAX_WORDS) -> str:
    """``words``, or what fits of them; what cannot be printed becomes a question mark."""
    shown = words if len(words) <= characters else f"{words[: characters - 3]}..."
    return "".join(one if one.isprintable() else "?" for one in shown)


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


def pack_surplus(unrolls: Sequence[Sequence[Buffer]], origins: Sequence[str]) -> bytes:
    """A 'surplus' in one piece: its header's length, the header, the unrolls' buffers."""
    sizes = [[len(part) for part in parts] for parts in unrolls]
    header = encode("surplus", sizes=sizes, origins=list(origins))
    buffers = [part for parts in unrolls for part in parts]
    return b"".join([len(header).to_bytes(4, "little"), header, *buffers])


def unpack_surplus(data: Buffer) -> list[tuple[list[memoryview], str]]:
    """Undoes ``pack_surplus``: buffers and origin of each. Raises BadMessage."""
    view = memoryview(data)
    start = 4 + int.from_bytes(view[:4], "little")
    header = decode(view[4:start])
    sizes, origins = field(header, "sizes", list), field(header, "origins", list)
    good = all(type(size) is int and size >= 0 for pair in sizes for size in pair)
    good = good and len(origins) == len(sizes) and all(type(one) is str for one in origins)
    if not good or start + sum(map(sum, sizes)) != len(view):
        raise BadMessage("surplus of another length than it says")
    unrolls = []
    for pair, origin in zip(sizes, origins, strict=True):
        parts = []
        for size in pair:
            parts.append(view[start : start + size])
            start += size
        unrolls.append((parts, origin))
    return unrolls


def encode_episodes(episodes: Sequence[EpisodeResult]) -> list[list[float | None]]:
    return [list(episode) for episode in episodes]


def decode_episodes(header: dict[str, Any], most: int) -> list[EpisodeResult]:
    """The episodes of an unroll, ``most`` at most: as many as its steps can end.

    Raises:
      BadMessage: there are more, or one of them is none.
    """
    episodes = []
    told = field(header, "episodes", list)
    if len(told) > most:
        raise BadMessage(f"unroll has {len(told)} episodes, and steps for {most}")
    for values in told:
        good = (
            isinstance(values, list)
            and len(values) == 4
            and all(v is None or (type(v) in (int, float) and abs(v) <= MAX_NUMBER) for v in values)
            and None not in values[:2]
        )
        if not good:
            raise BadMessage("unroll has a bad episode")
        episodes.append(EpisodeResult(*values))
    return episodes


def decode_waited(header: dict[str, Any]) -> float:
    """Seconds that the actor waited for its unroll. Raises BadMessage."""
    waited = header.get("waited", 0.0)
    if type(waited) not in (int, float) or not 0 <= waited <= MAX_WAITED_SECS:
        raise BadMessage("'unroll' has a bad waited")
    return float(waited)
