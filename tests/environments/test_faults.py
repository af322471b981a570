"""What environments do that they must not: told by name, step and action, or ended in time."""

import os
import signal
import sys
import time

import numpy as np
import pytest

from impala_torch import environments
from impala_torch.environments.faults import Guarded
from impala_torch.flags import exit_codes
from impala_torch.flags.errors import EnvironmentFault
from impala_torch.structures import LevelOptions
from tests import fakes
from tests.conftest import ROOT
from tests.test_experiment import wait_until

FAULTS = {
    "NanReward": "its reward is nan, which is not finite",
    "InfiniteReward": "its reward is -inf, which is not finite",
    "NoneReward": "its reward is None, which is no number",
    "HugeReward": "its reward is 3e+38; up to 1e+12 can be used",
    "NanObservation": "number 1 of its observation is nan, which is not finite",
    "HugeObservation": "number 0 of its observation is inf, which is not finite",
    "NoneObservation": "its observation is None",
    "OtherShape": "its observation has shape (3,), and its observation_space (2,)",
    "FourValues": "it raised ValueError: not enough values to unpack",
    "Objects": "its observation is of type object, which is no number",
    "ComplexNumbers": "its observation is of type complex128, which is no number",
    "Ragged": "its observation is no array: ",
    "NoInfo": "its info is None, and no dictionary",
    "WordForAnEnd": "its terminated is 'no', which is neither True nor False",
    "WordForAReward": "its reward is '1.0', which is no number",
    "Leaves": "it raised SystemExit: 0",
    "Raises": "it raised KeyError: 'no such key'",
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_fault_is_told_with_environment_step_and_action(name, repeats, monkeypatch):
    monkeypatch.setitem(fakes.gymnasium.registry[f"{name}-v0"].kwargs, "at", 4)
    level = LevelOptions(f"tests.fakes:{name}-v0", num_action_repeats=repeats)
    env = environments.make_environment(level, 2, seed=0)
    env.reset()
    actions = np.array([1, 0])
    for _ in range(4 // repeats - 1):
        env.step(actions)
    with pytest.raises(EnvironmentFault) as told:
        env.step(actions)
    words = str(told.value)
    assert f"--level_name=tests.fakes:{name}-v0, environment 0, " in words
    assert FAULTS[name] in words
    assert "action 1" in words
    assert "step 4" in words


@pytest.mark.parametrize("name", ["NanObservation", "NoneObservation", "OtherShape", "Raises"])
def test_so_is_one_of_a_reset(name, monkeypatch):
    how = fakes.gymnasium.registry[f"{name}-v0"].kwargs
    monkeypatch.setitem(how, "at", 0)
    env = environments.make_environment(f"tests.fakes:{name}-v0", 1, seed=0)
    with pytest.raises(EnvironmentFault, match=r"environment 0, its reset: "):
        env.reset()


def test_what_is_right_passes_as_it_is():
    plain = fakes.Counter(length=3)
    env = Guarded(plain, "Counter", 0, environments.base.Place())
    observation, info = env.reset()
    assert observation.tolist() == [0, 0]
    assert info == {}
    assert env.step(1)[1:] == (1.0, False, False, {})
    assert env.step(np.int64(1))[1:] == (2.0, False, False, {})
    assert env.step(1)[1:] == (3.0, True, False, {})
    plain.step = lambda action: ([0.0, 0], np.array([2]), np.array(False), 1, {"a": 1})
    observation, *others = env.step(1)
    assert observation.tolist() == [0, 0]
    assert others == [2.0, False, True, {}]  # nobody looks at what is in info


@pytest.mark.parametrize("limit", [0, 3])
def test_what_is_seen_last_is_told_with_its_step(limit, monkeypatch):
    monkeypatch.setitem(fakes.gymnasium.registry["NanObservation-v0"].kwargs, "at", 3)
    env = environments.make_environment(
        LevelOptions("tests.fakes:NanObservation-v0", max_episode_steps=limit), 1, seed=0
    )
    env.reset()
    for _ in range(2):
        env.step(np.array([1]))
    with pytest.raises(EnvironmentFault, match="environment 0, step 3, action 1: number 1 of"):
        env.step(np.array([1]))


def test_infos_may_be_anything():
    env = environments.make_environment("tests.fakes:VaryingInfo-v0", 4, seed=0)
    env.reset()
    for _ in range(50):
        assert env.step(np.zeros(4, np.int64)).reward.tolist() == [1.0] * 4
    env.close()


@pytest.mark.parametrize("family", ["spec", "rules", "environment"])
def test_what_raises_where_it_is_closed_is_told_and_costs_nothing(family, caplog):
    level = environments.resolve("tests.fakes:RaiseWhenClosed-v0")
    if family == "spec":
        assert environments.environment_spec(level).num_actions == 2
    elif family == "rules":
        assert environments.rules(level)["num_actions"] == 2
    else:
        env = environments.make_environment(level, 2, seed=0)
        env.reset()
        caplog.clear()
        env.close()
    said = "--level_name=tests.fakes:RaiseWhenClosed-v0: its close() raised OSError: no display"
    assert said in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("when", ["Made", "Closed"])
@pytest.mark.parametrize("mode", [["--mode=sample"], []])
def test_what_hangs_where_it_is_made_or_closed_ends_in_time(run_python, tmp_path, when, mode):
    level = f"--level_name=tests.fakes:HangWhen{when}-v0"
    flags = [level, "--agent_name=MLPAgent", "--env_timeout=2", "--num_actors=1"]
    flags += [f"--logdir={tmp_path}", *mode]
    ended = run_python("experiment.py", *flags, timeout=60)
    assert ended.returncode == exit_codes.FAILED
    assert f"{level}, being looked at: it has not returned for 2 s" in ended.stderr
    assert "fakes.py" in ended.stderr  # where it stood


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--mode=sample", "--num_actors=2"], ["--mode=sample"]])
def test_sampling_ends_with_the_process_that_fails(run_python, mode):
    flags = ["--level_name=tests.fakes:NanReward-v0", "--sample_secs=600", *mode]
    ended = run_python("experiment.py", *flags, timeout=60)
    assert ended.returncode == exit_codes.FAILED
    assert "its reward is nan" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_sampling_ends_with_a_process_that_ends_before_it_is_through(run_python):
    flags = ["--level_name=tests.fakes:Exits-v0", "--sample_secs=600", "--mode=sample"]
    ended = run_python("experiment.py", *flags, "--num_actors=2", timeout=60)
    assert ended.returncode == exit_codes.FAILED
    assert "a measuring process ended with exit code 0 before it was through" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_sampling_leaves_no_process_when_it_is_ended(start, tmp_path):
    flags = ["--level_name=CartPole-v1", "--mode=sample", "--sample_secs=600", "--num_actors=2"]
    mark = f"--logdir={tmp_path}"
    process = start([sys.executable, "experiment.py", *flags, mark])
    wait_until(lambda: len(children_of(process.pid)) >= 2)
    children = children_of(process.pid)
    process.terminate()
    process.wait(timeout=20)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children), 20)


def children_of(pid: int) -> list[int]:
    """Of its main thread, which starts them."""
    try:
        return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    except OSError:
        return []


@pytest.mark.slow
def test_time_in_which_a_process_was_frozen_is_not_its_environments(start):
    """Steps take half of what they may, so that it is frozen in one."""
    flags = ["--level_name=tests.fakes:Slow-v0", "--mode=sample", "--sample_secs=8"]
    flags += ["--num_actors=1", "--num_envs=1", "--env_timeout=1.5"]
    env = {"PYTHONPATH": str(ROOT)}
    process = start([sys.executable, "experiment.py", *flags], env=env)
    wait_until(lambda: len(children_of(process.pid)) >= 1)
    time.sleep(8)  # it is at it by now
    children = children_of(process.pid)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    assert process.wait(timeout=120) == 0


@pytest.mark.slow
def test_a_step_that_does_not_return_ends_its_process_and_says_where(run_python):
    flags = ["--level_name=tests.fakes:Hangs-v0", "--mode=sample", "--sample_secs=600"]
    ended = run_python("experiment.py", *flags, "--env_timeout=1", "--num_actors=1", timeout=60)
    assert ended.returncode == exit_codes.FAILED
    said = "--level_name=tests.fakes:Hangs-v0, environment 0, step 3, action "
    assert said in ended.stderr
    assert "has not returned for" in ended.stderr
    assert "tests/fakes.py" in ended.stderr  # where it stood


def test_a_limit_cuts_games_and_bootstraps():
    for name in ("tests.fakes:Endless-v0", "CartPole-v1", "PongNoFrameskip-v4"):
        level = environments.resolve(LevelOptions(name, max_episode_steps=24))
        assert environments.rules(level)["max_frames"] == 24
        env = environments.make_environment(level, 2, seed=0)
        env.reset()
        cut = []
        for step in range(1, 60):
            output = env.step(np.array([step % 2, step % 2]))
            if output.truncated.any():
                assert output.final_observation is not None
            cut += [episode.raw_frames for episode in output.episodes if output.truncated.all()]
        env.close()
        assert cut, name
        assert max(cut) <= 24, name


def test_a_level_without_a_limit_gets_one_in_evaluations():
    assert environments.limited("tests.fakes:Endless-v0").max_episode_steps == 108_000
    for name in ("CartPole-v1", "PongNoFrameskip-v4"):
        assert environments.limited(name).max_episode_steps == 0
    own = LevelOptions("tests.fakes:Endless-v0", max_episode_steps=7)
    assert environments.limited(own).max_episode_steps == 7
