"""What flags say of a run as a whole, shared out among its processes."""

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from impala_torch.flags import command_line
from impala_torch.flags.checks import check
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.flags.shares import shared_out

few = st.integers(1, 12)


@given(total=st.integers(1, 100), learners=few, actors=few, parts=st.integers(1, 4))
def test_shares_make_the_whole_and_fit_the_minibatches(total, learners, actors, parts):
    run = Config(total_num_envs=total, total_batch_size=total, num_minibatches=parts)
    check(run)
    found = shared_out(run, learners, actors)
    check(found)
    assert 0 <= found.num_envs * actors - total < actors
    assert 0 <= found.batch_size * learners - total < learners * parts
    assert found.total_num_envs == found.total_batch_size == 0
    assert shared_out(found, learners, actors) == found


def test_actors_with_a_number_of_their_own_leave_the_others_the_rest():
    run = Config(total_num_envs=32)
    assert shared_out(run, 2, 2, taken=4).num_envs == 14
    assert shared_out(run, 2, 2, taken=40).num_envs == 1


def test_without_totals_flags_stay():
    assert shared_out(Config(num_envs=7), 3, None) == Config(num_envs=7)


def test_an_actor_alone_cannot_know_its_share():
    with pytest.raises(UserError, match=r"--total_num_envs=8 is shared out .* needs --num_envs"):
        shared_out(Config(total_num_envs=8), 1, None)


def parsed(*argv: str) -> Config:
    values = flags.FlagValues()
    command_line.define_flags(values)
    command_line.parse_flags(["program", *argv], values)
    return command_line.from_flags(values)


def test_what_is_given_for_each_goes_before_an_algorithms_total():
    assert parsed("--algorithm=appo").total_batch_size == 32
    config = parsed("--algorithm=appo", "--batch_size=8")
    assert (config.total_batch_size, config.batch_size) == (0, 8)
    config = parsed("--algorithm=appo", "--num_envs=8")
    assert (config.total_num_envs, config.num_envs) == (0, 8)
    with pytest.raises(UserError, match="--total_num_envs is shared out as --num_envs"):
        parsed("--total_num_envs=8", "--num_envs=4")
    # As processes get them from what starts a run.
    assert parsed("--total_num_envs=0", "--num_envs=4").num_envs == 4


def test_two_ways_to_say_a_learners_batch_are_told():
    with pytest.raises(UserError, match="--virtual_batch_size is of each learner"):
        parsed("--total_batch_size=8", "--virtual_batch_size=16")


def test_processes_get_the_shares_whatever_the_algorithms_defaults():
    run = shared_out(parsed("--algorithm=appo"), learners=2, actors=3)
    process = parsed(*command_line.to_argv(run)[0:])
    assert process == run
    assert (process.num_envs, process.batch_size) == (11, 16)
