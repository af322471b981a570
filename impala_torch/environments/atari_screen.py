"""One Atari game, emulated frame by frame, for those who want to see each frame.

ALE's vector environment gives only what the agent sees. This one plays the same game, by the same
rules: with the same seed and actions, observations, rewards and ends are bit for bit those of
``atari.AtariEnvironment`` with one environment and ``episodic_life=False``.
"""

import ale_py
import cv2
import numpy as np
from ale_py import roms

from impala_torch.environments import atari
from impala_torch.environments.base import Environment, OnFrame
from impala_torch.environments.episodes import EpisodeTracker
from impala_torch.structures import EnvOutput, LevelOptions


class AtariScreen(Environment):
    """E = 1 game whose frames go to ``on_frame``; see the module."""

    num_envs = 1

    def __init__(
        self,
        level: LevelOptions,
        seed: int,
        on_frame: OnFrame,
        *,
        max_frames: int = atari.MAX_FRAMES,
        noop_max: int = atari.NOOP_MAX,
    ) -> None:
        """
        Args:
          on_frame: called with each emulated frame of a game, [210, 160, 3] uint8 (some games
            are a little higher), and the reward that it brought; not with the no-ops before.
          For the others see ``atari.AtariEnvironment``.
        """
        self.spec = atari.environment_spec(level)
        self._on_frame = on_frame
        self._repeats = level.num_action_repeats
        self._max_frames = level.max_episode_steps or max_frames
        self._noop_max = noop_max
        self._rom = str(roms.get_rom_path(atari.rom_of(level.level_name)))
        self._seed = int(atari.seeds_of(seed, 1)[0])
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", atari.sticky_actions(level.level_name))
        self._ale.loadROM(self._rom)
        self._actions = self._ale.getMinimalActionSet()
        self._has_fire = ale_py.Action.FIRE in self._actions
        # The last two frames in grayscale, the newer one first.
        self._screens = [np.zeros(self._ale.getScreenDims(), np.uint8) for _ in range(2)]
        self._tracker = EpisodeTracker(1, self._repeats)

    def reset(self) -> EnvOutput:
        self._ale.setInt("random_seed", self._seed)
        self._ale.loadROM(self._rom)
        # std::mt19937, from which ALE draws the number of no-ops.
        self._random = np.random.RandomState(self._seed)
        self._tracker.reset()
        return self._first(self._start()[None])

    def step(self, actions: np.ndarray) -> EnvOutput:
        action = self._actions[int(actions[0])]
        reward, over = 0.0, False
        for left in range(self._repeats, 0, -1):
            frames = self._repeats - left + 1
            gained = self._ale.act(action)
            self._elapsed += 1
            reward += gained
            self._on_frame(self._ale.getScreenRGB(), gained)
            over = self._ale.game_over()
            if over or self._elapsed >= self._max_frames:
                break
            if left <= 2:
                self._screens[left - 1] = self._ale.getScreenGrayscale()
        cut = not over and self._elapsed >= self._max_frames
        observation = self._observation()[None]
        final = observation if cut else None
        if over or cut:
            observation = self._start()[None]
        rewards, done = np.array([reward], np.float32), np.array([over or cut])
        return EnvOutput(
            reward=rewards,
            done=done,
            observation=observation,
            truncated=np.array([cut]),
            final_observation=final,
            episodes=self._tracker.step(rewards, done, done, np.array([frames])),
        )

    def close(self) -> None:
        """Nothing is held but memory."""

    def _start(self) -> np.ndarray:
        """Starts a game; its first observation, [H, W] uint8."""
        self._ale.reset_game()
        if self._has_fire:
            self._ale.act(ale_py.Action.FIRE)
        for _ in range(self._draw() - self._has_fire):
            self._ale.act(ale_py.Action.NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self._elapsed = 0
        self._screens[0] = self._ale.getScreenGrayscale()
        self._screens[1] = np.zeros_like(self._screens[0])
        return self._observation()

    def _draw(self) -> int:
        """The next number below ``noop_max``, as std::uniform_int_distribution of libstdc++."""
        bound = max(self._noop_max, 1)
        while True:
            product = int(self._random.randint(0, 1 << 32, dtype=np.uint32)) * bound
            if product % (1 << 32) >= (1 << 32) % bound:
                return product >> 32

    def _observation(self) -> np.ndarray:
        if self._repeats > 1:  # over single frames a maximum of two would mix two steps
            self._screens[0] = np.maximum(*self._screens)
        height, width = self.spec.observation.shape
        return cv2.resize(self._screens[0], (width, height), interpolation=cv2.INTER_AREA)
