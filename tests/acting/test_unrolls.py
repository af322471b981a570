"""The convention of time, end to end: environment, actor, wire, batch, learner."""

import itertools

import numpy as np
import pytest
import torch

from impala_torch import agents
from impala_torch.acting.player import Player
from impala_torch.acting.seeds import seeds_of
from impala_torch.acting.unrolls import UnrollCollector
from impala_torch.agents import ZOO
from impala_torch.agents.stacking import stack_frames
from impala_torch.algorithms import impala
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.environments.base import Environment
from impala_torch.environments.episodes import EpisodeTracker
from impala_torch.flags.config import Config
from impala_torch.structures import (
    AgentInput,
    AgentOutput,
    EnvironmentSpec,
    EnvOutput,
    LevelOptions,
    ObservationSpec,
    Unroll,
    empty_unroll,
)


class Clock(Environment):
    """Shows its own step counter: [episode, step in it] or a frame of them; reward = 10e + s.

    Environment e's episodes have 3 + e steps; odd episodes end by truncation.
    """

    def __init__(self, num_envs: int, image: bool, actions: int = 5) -> None:
        observation = (
            ObservationSpec((36, 36), "uint8", 4) if image else ObservationSpec((2,), "float32", 1)
        )
        self.spec = EnvironmentSpec(observation, actions)
        self.num_envs = num_envs
        self.actions: list[np.ndarray] = []
        self._tracker = EpisodeTracker(num_envs, 1)

    def reset(self) -> EnvOutput:
        self._episode = np.zeros(self.num_envs, np.int64)
        self._step = np.zeros(self.num_envs, np.int64)
        return self._first(self._show())

    def step(self, actions: np.ndarray) -> EnvOutput:
        self.actions.append(actions.copy())
        self._step += 1
        reward = (10 * self._episode + self._step).astype(np.float32)
        done = self._step == 3 + np.arange(self.num_envs)
        truncated = done & (self._episode % 2 == 1)
        final = self._show()
        self._episode[done] += 1
        self._step[done] = 0
        return EnvOutput(
            reward,
            done,
            self._show(),
            truncated,
            final if truncated.any() else None,
            self._tracker.step(reward, done, done),
        )

    def close(self) -> None:
        pass

    def _show(self) -> np.ndarray:
        counters = np.stack([self._episode, self._step], axis=1)
        if len(self.spec.observation.shape) == 1:
            return counters.astype(np.float32)
        frame = np.zeros((self.num_envs, 36, 36), np.uint8)
        frame[:, :18] = (40 * counters[:, :1, None] + 20) % 256
        frame[:, 18:] = (30 * counters[:, 1:, None] + 10) % 256
        return frame


def make_player(name: str, num_envs: int) -> Player:
    image = ZOO[name].image
    environment = Clock(num_envs, image)
    torch.manual_seed(3)
    agent = agents.make_agent(name, environment.spec)
    with torch.no_grad():  # logits that differ, so that a mix-up shows
        agent.policy.weight.mul_(100)
    return Player(agent, environment, seed=5)


def copy_of(unroll: Unroll) -> Unroll:
    return Unroll(*(field.copy() for field in unroll))


def test_no_row_is_off_by_one():
    num_envs, length = 3, 7
    player = make_player("MLPAgent", num_envs)
    collector = UnrollCollector(player, length)
    unrolls = [copy_of(collector.collect(version)) for version in (4, 5, 6)]
    for number, unroll in enumerate(unrolls):
        assert (unroll.weights_version == 4 + number).all()
        for env in range(num_envs):
            size = 3 + env  # steps of an episode
            for t in range(length + 1):
                clock = number * length + t  # steps since the start
                episode, step = divmod(clock, size)
                assert unroll.observation[t, env].tolist() == [episode, step]
                assert unroll.done[t, env] == (step == 0)
                # The reward led here: of the last step of the episode before where step is 0.
                before = 10 * (episode - (step == 0)) + (size if step == 0 else step)
                assert unroll.reward[t, env] == (before if clock else 0)
                if clock:  # the action of the row before is the one the environment took
                    taken = player.environment.actions[clock - 1][env]
                    last = unroll.action[t - 1, env] if t else unroll.initial_action[env]
                    assert last == taken
                truncated = step == 0 and clock and (episode - 1) % 2 == 1
                assert bool(unroll.final_value[t, env] != 0) == bool(truncated)
    for before, after in itertools.pairwise(unrolls):
        for name in ("reward", "done", "final_value", "action", "policy_logits", "baseline"):
            np.testing.assert_array_equal(getattr(after, name)[0], getattr(before, name)[-1])


def test_the_final_value_is_the_baseline_of_what_was_seen_last():
    player = make_player("MLPAgent", 1)
    unroll = UnrollCollector(player, 7).collect(0)
    # Episodes of 3 steps; the second is cut, at row 6: its last observation was [1, 3].
    expected, _ = player.agent(
        AgentInput(
            torch.tensor([[[1.0, 3.0]]]),
            torch.tensor([[13.0]]),
            torch.tensor([[False]]),
            torch.from_numpy(unroll.action[5:6]),
        ),
        player.agent.initial_state(1),
    )
    assert unroll.final_value[6, 0] == pytest.approx(expected.baseline.item(), rel=1e-5)
    assert (np.delete(unroll.final_value[:, 0], 6) == 0).all()


@pytest.mark.parametrize("name", ZOO)
def test_the_learner_reproduces_the_actors_outputs(name):
    """With the actor's weights, over unrolls that cross episode ends, after the real wire."""
    num_envs, length = 3, 9
    player = make_player(name, num_envs)
    collector = UnrollCollector(player, length)
    level = LevelOptions("Clock", num_action_repeats=1)
    spec = RunSpec(name, level, length, player.environment.spec, player.agent.state_size)
    codec = UnrollCodec(spec)
    for _ in range(3):
        sent = collector.collect(0)
        decoded = codec.decode_fields(codec.encode(sent), num_envs, version=0)
        batch = empty_unroll(spec.environment, length, spec.state_size, num_envs)
        for env in range(num_envs):
            codec.decode_column(decoded, env, batch, env)
        got = Unroll(*(torch.from_numpy(field) for field in batch))
        assert got.done[1:].any()
        stack = spec.environment.observation.stack
        inputs = AgentInput(
            stack_frames(got.observation, got.done, stack),
            got.reward,
            got.done,
            torch.cat([got.initial_action.unsqueeze(0), got.action[:-1]]),
        )
        outputs, state = player.agent(inputs, got.agent_state)
        torch.testing.assert_close(outputs.policy_logits, got.policy_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.baseline, got.baseline, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state, player.state, rtol=1e-4, atol=1e-4)
        # The test can fail: inputs shifted by one row give other outputs.
        for field in ("observation", "last_action"):
            shifted = {field: torch.roll(getattr(inputs, field), 1, dims=0)}
            other, _ = player.agent(inputs._replace(**shifted), got.agent_state)
            assert not torch.allclose(other.policy_logits, got.policy_logits, 1e-4, 1e-4), field


def test_a_truncation_bootstraps_and_a_termination_does_not():
    """Learning's target at a truncated step is reward + discount * final value, exactly."""
    config = Config(reward_clipping="none", discounting=0.9, entropy_cost=0.0, baseline_cost=1.0)
    spec = EnvironmentSpec(ObservationSpec((1,), "float32", 1), 2)
    unroll = empty_unroll(spec, 1, 0, 2)
    unroll.reward[1] = [2.0, 2.0]
    unroll.done[1] = True
    unroll.final_value[1] = [5.0, 0.0]  # the first was cut, the second ended
    outputs = impala.AgentOutput(torch.zeros(2, 2, 2), torch.full((2, 2), 100.0))
    outputs.baseline[0] = 1.0
    batch = Unroll(*(torch.from_numpy(field) for field in unroll))
    _, metrics = impala.impala_loss(outputs, batch, config)
    expected = 0.5 * ((2 + 0.9 * 5 - 1) ** 2 + (2 - 1) ** 2)
    assert metrics["baseline_loss"].item() == pytest.approx(expected)


def test_actions_are_drawn_from_the_behaviour_policy():
    environment = Clock(4000, image=False, actions=4)
    player = Player(agents.make_agent("MLPAgent", environment.spec), environment, seed=5)
    probabilities = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25]])
    for row in probabilities:
        logits = (row.log() - 3).clamp(min=-1e4).expand(4000, 4)
        draws = torch.cat([player.act(AgentOutput(logits, torch.zeros(4000))) for _ in range(10)])
        shares = torch.bincount(draws, minlength=4) / 40_000
        deviation = (row * (1 - row) / 40_000).sqrt()
        assert ((shares - row).abs() <= 4 * deviation).all(), (shares, row)


def test_every_actor_of_a_run_has_its_own_seeds():
    seen = {seeds_of(7, worker_set, task) for worker_set in range(9) for task in range(40)}
    assert len(seen) == 9 * 40
    assert len({seeds.environment for seeds in seen}) == 9 * 40
    assert seeds_of(7, 3, 4) == seeds_of(7, 3, 4) != seeds_of(8, 3, 4)
