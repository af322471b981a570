"""Numbers of all ranks as one learner would tell them."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from impala_torch.report import together
from impala_torch.report.tally import Tally
from impala_torch.structures import EpisodeResult, empty_unroll
from tests.conftest import small_spec


def episode(number: int) -> list:
    return [float(number), 4, None, None]


def test_episodes_come_in_the_order_of_updates_whichever_rank_heard_of_them():
    first = [(1, episode(0)), (1, episode(2)), (5, episode(6))]
    second = [(1, episode(1)), (2, episode(3)), (2, episode(4)), (3, episode(5))]
    for everyone in ([first, second], [first, second, []]):
        told = together.episodes_of(everyone)
        assert [result.episode_return for result in told] == list(range(7))
        assert isinstance(told[0], EpisodeResult)


@hypothesis.given(st.lists(st.lists(st.integers(0, 5)), min_size=1, max_size=4))
def test_a_window_of_the_last_games_takes_as_many_of_each_rank_as_there_were(updates):
    everyone = [[(at, [rank, 4, None, None]) for at in sorted(rank_s)]
                for rank, rank_s in enumerate(updates)]  # fmt: skip
    told = together.episodes_of(everyone)
    assert len(told) == sum(map(len, updates))
    for update in range(6):
        of_update = [
            int(result.episode_return)
            for result, at in zip(told, sorted(at for one in updates for at in one), strict=True)
            if at == update
        ]
        # In any part from its beginning each rank has its share, give or take one.
        for count in range(1, len(of_update) + 1):
            for rank, one in enumerate(updates):
                due = one.count(update) * count / len(of_update)
                assert abs(of_update[:count].count(rank) - due) <= 1 + len(updates) / 2


def test_losses_add_up_where_gradients_do_and_means_are_means():
    everyone = [
        {"metrics": {"total_loss": 3.0, "entropy": 1.0, "grad_norm": 2.0}},
        {"metrics": {"total_loss": -1.0, "entropy": 2.0, "grad_norm": 2.0}},
    ]
    summed = together.metrics_of(everyone, "sum")
    assert summed == {"total_loss": 2.0, "entropy": 1.5, "grad_norm": 2.0}
    assert together.metrics_of(everyone, "average")["total_loss"] == 1.0


def test_a_tally_is_of_the_whole_interval():
    tally = Tally(num_actions=3)
    unroll = empty_unroll(small_spec().environment, 2, 0, 2)
    unroll.action[:] = [[0, 1], [1, 1], [2, 2]]  # the last row is of the next unroll
    for updates, version, loss in ((4, 4, 1.0), (5, 3, 3.0)):
        unroll.weights_version[:] = version
        tally.learned_from(unroll, updates)
        tally.stepped({"total_loss": torch.tensor(loss)}, 2 * loss)
    tally.add_wait(0.5)
    assert tally.take() == {
        "metrics": {"total_loss": 2.0, "grad_norm": 4.0},
        "lag": 1.0,
        "batches": 2,
        "actions": [2, 6, 0],
        "waited": 0.5,
    }
    assert tally.take()["metrics"] == {}
    tally.stepped({"total_loss": torch.tensor(5.0)}, 1.0)
    assert tally.take()["metrics"] == pytest.approx({"total_loss": 5.0, "grad_norm": 1.0})
