"""Learners share their data: what one has too much of, another learns from.

Learners go in step, so the one with the least data would hold up all. Before each update they tell
each other what they have (``endpoint.batches.Stock``); each works out the same ``Plan`` from that,
and what is to move is sent while they learn. What they have together is then what one learner would
have: an update can be made as soon as the unrolls for it are there, wherever they are.

Unrolls move as they came from actors, compressed and checked, over MPI; weights and their versions
are the same everywhere.
"""

import collections
import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from impala_torch.endpoint import messages
from impala_torch.endpoint.batches import BatchQueue, Stock, Waiting
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.learning.group import Group
from impala_torch.structures import empty_unroll

_END_SECS = 5.0  # that what is on its way at the end may take
# After so many rounds a message that is larger than its room comes whatever the others hold: their
# smaller ones take any room at once, and it would wait for ever.
_PATIENT_ROUNDS = 50


class Move(NamedTuple):
    """What one learner gives to another."""

    giver: int
    taker: int
    unrolls: int


class Plan(NamedTuple):
    """What learners do about what they have told each other."""

    moves: list[Move]
    allowed: list[int]  # by rank: unrolls that may be assembled beyond the batch in hand
    overdrafts: list[int]  # by rank: unrolls of a message to let in; 0 = none
    turn: int  # the rank to be asked first the next time


def plan(stocks: Sequence[Stock], batch_size: int, capacity: int, turn: int = 0) -> Plan:
    """What to move, so that no learner waits for what another has.

    First all are to have a batch of B, then all the next one. Nobody gives what it needs as much
    itself, nobody assembles more than its part, and what is on its way to nobody in particular
    stays where it is.

    Args:
      stocks: of each rank.
      batch_size: B.
      capacity: unrolls that each rank's queue holds.
      turn: the rank that is first in line to let in a message larger than its room.
    """
    told = np.array(stocks)
    in_hand, taken, waiting, coming = told[:, :4].T
    have = in_hand + taken + waiting + coming
    part = int(have.sum()) // len(stocks)
    goal = min(part, batch_size if (in_hand == 0).any() else 2 * batch_size)
    moves = _moves(np.maximum(0, goal - have), np.minimum(waiting, np.maximum(0, have - goal)))
    overdrafts, turn = _overdrafts(stocks, batch_size, capacity, turn)
    return Plan(moves, np.maximum(0, part - in_hand).tolist(), overdrafts, turn)


def _moves(missing: np.ndarray, spare: np.ndarray) -> list[Move]:
    """Fills what is missing from what is spare, in few moves: the most from whom has the most."""
    moves: list[Move] = []
    missing, spare = missing.copy(), spare.copy()
    while missing.any() and spare.any():
        giver, taker = int(spare.argmax()), int(missing.argmax())
        unrolls = int(min(spare[giver], missing[taker]))
        moves.append(Move(giver, taker, unrolls))
        spare[giver] -= unrolls
        missing[taker] -= unrolls
    return moves


def _overdrafts(
    stocks: Sequence[Stock], batch_size: int, capacity: int, turn: int
) -> tuple[list[int], int]:
    """Whose message, larger than its room, may come: as many as one learner of all would let in.

    One learner has room for all their ``capacity``, and lets a larger message in while it has less
    than a batch. So does the group: a message that would fit into a queue's room comes where all
    together have less than they learn from, one that fits into none where one learner had room.
    """
    size = len(stocks)
    overdrafts = [one.overdraft for one in stocks]
    largest = max(one.wanted for one in stocks)
    bound = max(size * capacity, size * batch_size - 1 + largest)
    held = sum(one.taken + one.waiting + one.coming + one.reserved for one in stocks)
    held += sum(overdrafts)
    # Of what is assembled, a learner can use a batch now; the rest does not help the others.
    useful = held - sum(
        one.taken - min(one.taken, max(0, batch_size - one.in_hand)) for one in stocks
    )
    useful += sum(one.in_hand for one in stocks)
    for rank in [*range(turn, size), *range(turn)]:
        wanted = stocks[rank].wanted
        room = held + wanted <= bound if wanted > capacity else held < size * batch_size
        room |= useful < size * batch_size
        room |= stocks[rank].rounds >= _PATIENT_ROUNDS and not any(overdrafts)
        if wanted and not overdrafts[rank] and room:
            overdrafts[rank] = wanted
            held += wanted
            useful += wanted
            turn = (rank + 1) % size
    return overdrafts, turn


class Sharing:
    """One learner's part in it. Of a group of one it does nothing."""

    def __init__(self, group: Group, batches: BatchQueue, spec: RunSpec, batch_size: int) -> None:
        """
        Args:
          group: the learners.
          batches: this one's; ``shared`` where they are several.
          spec: of the run.
          batch_size: B.
        """
        self._group, self._batches, self._batch_size = group, batches, batch_size
        self._codec = UnrollCodec(spec)
        self._scratch = empty_unroll(spec.environment, spec.unroll_length, spec.state_size, 1)
        self._turn = 0
        # By rank, what is on its way from there, oldest first.
        self._expected: dict[int, collections.deque[int]] = {
            rank: collections.deque() for rank in range(group.size) if rank != group.rank
        }

    @property
    def expects(self) -> bool:
        """Whether unrolls are on their way here."""
        return any(self._expected.values())

    def stock(self, in_hand: bool) -> Stock:
        """What this learner has, for ``share``; ``in_hand``: a batch too."""
        return self._batches.stock(in_hand)

    def share(self, stocks: Sequence[Stock]) -> None:
        """Gives and expects what follows from all ranks' ``stock``. Waits for nothing."""
        if self._group.size == 1:
            return
        rank = self._group.rank
        todo = plan(stocks, self._batch_size, self._batches.capacity, self._turn)
        self._turn = todo.turn
        for move in todo.moves:
            if move.giver == rank:
                self._group.send(move.taker, self._pack(self._batches.give(move.unrolls)))
            elif move.taker == rank:
                self._batches.expect(move.unrolls)
                self._expected[move.giver].append(move.unrolls)
        self._batches.allow(todo.allowed[rank])
        if todo.overdrafts[rank] > stocks[rank].overdraft:
            self._batches.lend(todo.overdrafts[rank])

    def collect(self) -> None:
        """Takes in what has arrived. Waits for nothing.

        Raises:
          BadMessage: another learner sent what is no unroll of this run.
        """
        for giver, expected in self._expected.items():
            while expected and (data := self._group.receive(giver)) is not None:
                count, came = expected.popleft(), []
                try:
                    for parts, origin in messages.unpack_surplus(data):
                        envs = len(parts) - 1
                        unroll = self._codec.decode_fields(parts, envs, self._batches.version)
                        came += [Waiting(None, unroll, env, origin) for env in range(envs)]
                finally:  # what was expected is not on its way any more, whatever it was
                    self._batches.take_over(count, came)

    def _pack(self, given: Sequence[Waiting]) -> bytes:
        """A 'surplus' of what is given; what came in one message stays together, in one block."""
        together = itertools.groupby(filter(self._is_whole, given), lambda one: id(one.unroll))
        parts, origins = [], []
        for _, ones in together:
            first, *others = ones
            envs = [first.env, *(one.env for one in others)]
            parts.append(self._codec.encode_some(first.unroll, envs))
            origins.append(first.origin)
        return messages.pack_surplus(parts, origins)

    def _is_whole(self, one: Waiting) -> bool:
        """Whether an unroll can be decoded; its actor is told here where it cannot.

        The learner that gets it could not: it does not know the actor.
        """
        try:
            self._codec.decode_column(one.unroll, one.env, self._scratch, 0)
        except messages.BadMessage as error:
            if one.sender is not None:
                self._batches.on_bad(one.sender, str(error))
            return False
        return True

    def close(self) -> None:
        """Lets what is on its way arrive, so that nobody is left sending."""
        deadline = time.monotonic() + _END_SECS
        while self.expects and time.monotonic() < deadline:
            self.collect()
            time.sleep(1e-3)
