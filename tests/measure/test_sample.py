"""Sample mode: real environments, random actions, all processes together."""

import pytest

from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.measure import sample


@pytest.mark.parametrize(("level", "repeats"), [("CartPole-v1", 1), ("PongNoFrameskip-v4", 4)])
def test_steps_and_frames_are_counted(level, repeats):
    config = Config(mode="sample", level_name=level, num_actors=2, num_envs=3, sample_secs=0.5)
    rates = sample.measure(config)
    assert rates.processes == 2
    assert rates.steps_per_sec > 100
    assert rates.frames_per_sec == repeats * rates.steps_per_sec


def test_the_command_says_it_in_a_line(run_python):
    flags = ["--mode=sample", "--level_name=CartPole-v1", "--sample_secs=0.3", "--num_actors=1"]
    done = run_python("experiment.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "agent steps/s" in done.stdout
    assert "(1 process(es) of 16 environments, random actions)" in done.stdout


def test_a_level_that_cannot_be_is_told_once():
    with pytest.raises(UserError, match="no Atari game"):
        sample.measure(Config(mode="sample", level_name="PoongNoFrameskip-v4"))
