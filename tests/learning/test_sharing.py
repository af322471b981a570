"""Learners share their data: who gives what to whom, and real ranks that do."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from impala_torch.endpoint import messages
from impala_torch.endpoint.batches import BatchQueue, Stock
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.learning.group import Group
from impala_torch.learning.sharing import Sharing, plan
from tests.conftest import make_batch, random_unroll, small_spec

B, CAPACITY = 4, 8
SENDER = (b"", b"")


def stock(in_hand=0, taken=0, waiting=0, coming=0, reserved=0, wanted=0, overdraft=0, rounds=0):
    return Stock(in_hand, taken, waiting, coming, reserved, wanted, overdraft, rounds)


def after(stocks, todo):
    """What each rank has once the moves are made."""
    have = [sum(one[:4]) for one in stocks]
    for move in todo.moves:
        have[move.giver] -= move.unrolls
        have[move.taker] += move.unrolls
    return have


def test_a_learner_without_actors_gets_its_batch_of_the_others():
    stocks = [stock(waiting=9), stock()]
    todo = plan(stocks, B, CAPACITY)
    assert [tuple(move) for move in todo.moves] == [(0, 1, 4)]
    assert todo.allowed == [4, 4]


def test_the_next_batch_is_shared_while_this_one_is_learned():
    stocks = [stock(in_hand=4, taken=2, waiting=8), stock(in_hand=4)]
    todo = plan(stocks, B, CAPACITY)
    assert [tuple(move) for move in todo.moves] == [(0, 1, 4)]


def test_too_few_are_shared_evenly_and_what_is_even_stays():
    todo = plan([stock(waiting=5), stock(waiting=1)], B, CAPACITY)
    assert [tuple(move) for move in todo.moves] == [(0, 1, 2)]
    assert todo.allowed == [3, 3]
    even = [stock(in_hand=4, waiting=5), stock(in_hand=4, waiting=7)]
    assert plan(even, B, CAPACITY).moves == []
    coming = [stock(in_hand=4, waiting=9), stock(in_hand=4, coming=4)]
    assert plan(coming, B, CAPACITY).moves == []


amounts = st.integers(0, 20)
stocks_of = st.lists(
    st.builds(
        Stock,
        st.sampled_from([0, B]),
        amounts,
        amounts,
        amounts,
        amounts,
        st.sampled_from([0, 1, 6, 9, 16]),
        st.just(0),
        st.just(0),
    ),
    min_size=1,
    max_size=6,
)


@hypothesis.given(stocks_of)
def test_nobody_waits_for_what_another_could_give(stocks):
    todo = plan(stocks, B, CAPACITY)
    have, before = after(stocks, todo), [sum(one[:4]) for one in stocks]
    assert sum(have) == sum(before)
    given = [0] * len(stocks)
    for move in todo.moves:
        assert move.giver != move.taker
        given[move.giver] += move.unrolls
    part = sum(before) // len(stocks)
    for rank, one in enumerate(stocks):
        assert given[rank] <= one.waiting
        assert todo.allowed[rank] >= 0
        if given[rank]:  # nobody gives what it needs as much itself
            assert have[rank] >= min(part, 2 * B)
    if min(have) < min(part, B):  # somebody still lacks: what there is, is assembled already
        for rank, one in enumerate(stocks):
            assert have[rank] <= min(part, 2 * B) or one.waiting - given[rank] == 0


@hypothesis.given(stocks_of, st.integers(0, 5))
def test_messages_larger_than_the_room_come_as_one_learner_would_let_them(stocks, turn):
    turn %= len(stocks)
    todo = plan(stocks, B, CAPACITY, turn)
    held = sum(one.taken + one.waiting + one.coming + one.reserved for one in stocks)
    lent = sum(todo.overdrafts)
    bound = max(len(stocks) * CAPACITY, len(stocks) * B - 1 + max(one.wanted for one in stocks))
    assert all(lends in (0, one.wanted) for lends, one in zip(todo.overdrafts, stocks, strict=True))
    short = (
        held
        + sum(one.in_hand for one in stocks)
        - sum(max(0, one.in_hand + one.taken - max(B, one.in_hand)) for one in stocks)
        < len(stocks) * B
    )
    if lent and not short:
        assert held + lent <= bound
    wants = any(one.wanted for one in stocks)
    if wants and held < len(stocks) * B:
        assert lent  # one learner would let it in, and this run must not starve


def test_a_learner_with_more_than_a_batch_gets_more_where_all_together_have_too_little():
    # Its room is too small for another message, and it cannot give what nobody could use.
    stocks = [stock(waiting=B, taken=1, wanted=CAPACITY), stock(taken=1)]
    assert plan(stocks, B, CAPACITY).overdrafts == [CAPACITY, 0]
    enough = [stock(waiting=2 * B, wanted=CAPACITY), stock()]
    assert plan(enough, B, CAPACITY).overdrafts == [0, 0]


def test_batches_that_one_learner_has_too_many_of_do_not_keep_the_others_waiting():
    stocks = [stock(in_hand=B, taken=2 * B), stock(wanted=16)]
    assert plan(stocks, B, CAPACITY).overdrafts == [0, 16]


def test_a_message_that_has_waited_long_comes_whatever_others_hold():
    def lent(rounds):
        waits = stock(in_hand=B, wanted=64, rounds=rounds)
        return plan([waits, stock(in_hand=B, reserved=2 * B, wanted=1)], B, CAPACITY).overdrafts

    assert lent(3) == [0, 0]
    assert lent(50) == [64, 0]


def test_turns_go_round():
    stocks = [stock(wanted=16), stock(wanted=16), stock(wanted=16)]
    turn, order = 0, []
    for _ in range(6):
        todo = plan(stocks, B, CAPACITY, turn)
        order.append([rank for rank, lends in enumerate(todo.overdrafts) if lends])
        turn = todo.turn
    assert order == [[0], [1], [2]] * 2


class Post:
    """What two ranks of this process send each other."""

    def __init__(self) -> None:
        self.sent: dict[tuple[int, int], list[bytes]] = {}

    def rank(self, number: int) -> Group:
        group = Group()
        group.rank, group.size = number, 2
        group.send = lambda to, data: self.sent.setdefault((number, to), []).append(data)
        group.receive = lambda giver: next(iter(self._take(giver, number)), None)
        return group

    def _take(self, giver: int, taker: int) -> list[bytes]:
        waiting = self.sent.get((giver, taker), [])
        return [waiting.pop(0)] if waiting else []


@pytest.fixture
def ranks():
    spec, post = small_spec(), Post()
    queues = [BatchQueue(spec, B, 2, lambda: make_batch(spec, B), shared=True) for _ in range(2)]
    yield [
        (queue, Sharing(post.rank(number), queue, spec, B)) for number, queue in enumerate(queues)
    ]
    for queue in queues:
        queue.close()


def put(queue, unrolls, seed=0):
    spec = small_spec()
    unroll = random_unroll(spec, unrolls, np.random.default_rng(seed))
    buffers = UnrollCodec(spec).encode(unroll)
    assert queue.reserve(unrolls)
    queue.put(SENDER, UnrollCodec(spec).decode_fields(buffers, unrolls, 0), unrolls)
    return unroll


def share(ranks):
    stocks = [sharing.stock(in_hand=False) for _, sharing in ranks]
    for _, sharing in ranks:
        sharing.share(stocks)
    for _, sharing in ranks:
        sharing.collect()


def test_unrolls_arrive_as_they_were(ranks):
    (giver, _), (taker, sharing) = ranks
    sent = put(giver, 2 * B)
    assert taker.get(0.05) is None
    share(ranks)
    assert not sharing.expects
    given, kept = taker.get(5), giver.get(5)
    for name, array in sent._asdict().items():
        axis = 0 if name in ("initial_action", "agent_state", "weights_version") else 1
        first, second = np.split(array, 2, axis=axis)
        np.testing.assert_array_equal(getattr(given.arrays, name), first, err_msg=name)
        np.testing.assert_array_equal(getattr(kept.arrays, name), second, err_msg=name)
    assert (giver.given, taker.received, giver.received, taker.given) == (B, B, 0, 0)
    assert giver.depth == taker.depth == 0


def test_a_learner_alone_assembles_no_more_than_its_part(ranks):
    (giver, _), (taker, _) = ranks
    put(giver, B)
    share(ranks)
    assert giver.get(0.05) is None
    assert giver.stock(False).taken == taker.stock(False).taken == B // 2
    put(giver, B, seed=1)
    share(ranks)
    assert giver.get(5) is not None
    assert taker.get(5) is not None


def test_what_is_in_flight_is_bounded_for_all(ranks):
    (first, _), (second, _) = ranks
    large = 2 * B + 3  # than the queue of either
    for queue, _ in ranks:
        assert not queue.reserve(large)
    share(ranks)
    assert first.reserve(large)
    assert not second.reserve(large)
    share(ranks)
    assert not second.reserve(large)  # 11 are reserved: 22 would be more than one learner lets in
    first.release(large)
    share(ranks)
    assert second.reserve(large)


def test_an_actor_whose_unroll_is_damaged_is_told_by_its_own_learner(ranks):
    (giver, _), (taker, _) = ranks
    told = []
    giver.on_bad = lambda sender, reason: told.append((sender, reason))
    spec = small_spec()
    buffers = UnrollCodec(spec).encode(random_unroll(spec, 2 * B, np.random.default_rng(0)))
    damaged = bytearray(buffers[1])
    damaged[-1] ^= 255  # of its checksum
    assert giver.reserve(2 * B)
    codec = UnrollCodec(spec)
    unroll = codec.decode_fields([buffers[0], bytes(damaged), *buffers[2:]], 2 * B, 0)
    giver.put((b"actor", b""), unroll, 2 * B)
    share(ranks)
    assert [sender for sender, _ in told] == [(b"actor", b"")]
    assert taker.received == B - 1
    assert taker.stock(False).coming == 0


@pytest.mark.parametrize("shared", [False, True])
def test_unrolls_that_became_too_old_make_room_for_others(shared):
    """Two half-filled batches wait for the same unrolls, and the next message is let in."""
    spec, batch_size, envs = small_spec(), 8, 10
    queue = BatchQueue(
        spec, batch_size, 2, lambda: make_batch(spec, batch_size), max_policy_lag=1, shared=shared
    )
    sharing = Sharing(Group(), queue, spec, batch_size)
    codec = UnrollCodec(spec)

    def come(version):
        if not queue.reserve(envs):
            queue.lend(plan([sharing.stock(False)], batch_size, queue.capacity).overdrafts[0])
            if not queue.reserve(envs):
                return False
        unroll = random_unroll(spec, envs, np.random.default_rng(version))
        unroll.weights_version[:] = version
        queue.put(SENDER, codec.decode_fields(codec.encode(unroll), envs, version), envs)
        queue.allow(2 * batch_size)
        return True

    assert come(0)
    queue.recycle(queue.get(5))
    queue.version = 1
    assert come(1)
    queue.version = 2
    assert queue.get(0.1) is None  # two of version 0 are left out of it
    assert queue.dropped == 2
    assert come(2)
    for _ in range(2):
        batch = queue.get(5)
        assert (batch.arrays.weights_version >= 1).all()
        queue.recycle(batch)
    queue.close()


def test_a_damaged_surplus_is_told():
    data = messages.pack_surplus([[b"abc", b"de"], [b"", b"f"]], ["one", "another"])
    assert messages.unpack_surplus(data) == [([b"abc", b"de"], "one"), ([b"", b"f"], "another")]
    for bad in (data[:-1], data + b"x", b"\x00\x00\x00\x00", b""):
        with pytest.raises(messages.BadMessage):
            messages.unpack_surplus(bad)
