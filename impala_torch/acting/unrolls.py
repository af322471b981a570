"""Unrolls of T steps, collected from a player by the convention of time."""

import numpy as np

from impala_torch.acting.player import Player
from impala_torch.structures import EnvOutput, EpisodeResult, Unroll, empty_unroll


class UnrollCollector:
    """Plays unrolls of T steps in E environments, by the convention of ``structures``."""

    def __init__(self, player: Player, unroll_length: int) -> None:
        self._player = player
        self._length = unroll_length
        spec = player.environment.spec
        self._stack = spec.observation.stack
        unroll = empty_unroll(
            spec, unroll_length, player.agent.state_size, player.environment.num_envs
        )
        # By environment in memory, as it is compressed: else that would copy it first.
        by_env = np.ascontiguousarray(unroll.observation.swapaxes(0, 1))
        self._unroll = unroll._replace(observation=by_env.swapaxes(0, 1))
        self.episodes: list[EpisodeResult] = []
        self._started = False

    def collect(self, weights_version: int) -> Unroll[np.ndarray]:
        """The next unroll; its arrays are overwritten by the next call.

        Args:
          weights_version: of the weights that the player's agent has now. Row 0 was computed
            with those of the call before.
        """
        unroll, player = self._unroll, self._player
        self.episodes = []
        if self._started:
            self._repeat_last_row()
        else:
            unroll.initial_action[:] = 0
            self._see(0, player.environment.reset())
            self._started = True
        unroll.weights_version[:] = weights_version
        for t in range(1, self._length + 1):
            output = player.environment.step(unroll.action[t - 1])
            self.episodes.extend(output.episodes)
            self._see(t, output)
        return unroll

    def _see(self, t: int, output: EnvOutput) -> None:
        unroll, player = self._unroll, self._player
        unroll.final_value[t] = 0
        if output.final_observation is not None:
            unroll.final_value[t] = np.where(output.truncated, player.value_of(output), 0)
        agent_output = player.see(output)
        unroll.observation[t + self._stack - 1] = output.observation
        unroll.reward[t] = output.reward
        unroll.done[t] = output.done
        unroll.policy_logits[t] = agent_output.policy_logits.numpy()
        unroll.baseline[t] = agent_output.baseline.numpy()
        unroll.action[t] = player.act(agent_output).numpy()
        if t == 0:
            unroll.agent_state[:] = player.state_before.numpy()

    def _repeat_last_row(self) -> None:
        """Makes row 0 of the last row; the frames before it are those of its stack."""
        unroll, player = self._unroll, self._player
        unroll.initial_action[:] = unroll.action[-2]
        for rows in (
            unroll.reward,
            unroll.done,
            unroll.final_value,
            unroll.action,
            unroll.policy_logits,
            unroll.baseline,
        ):
            rows[0] = rows[-1]
        unroll.observation[: self._stack] = player.stacker.frames.numpy()
        unroll.agent_state[:] = player.state_before.numpy()
