"""Environments for tests, registered with gymnasium when this module is imported.

As a level: ``--level_name=tests.fakes:PixelCatch-v0`` with the project's root on PYTHONPATH.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Observes [episode, step]; reward = step; ends after ``length`` steps."""

    observation_space = spaces.Box(0, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, length: int = 4) -> None:
        self._length = length
        self._episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._episode += 1
        self._step = 0
        return self._observation(), {}

    def step(self, action: int):
        self._step += 1
        return self._observation(), float(self._step), self._step == self._length, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self._episode, self._step], np.float64)


class PixelCatch(gymnasium.Env):
    """Shows a bright bar on the left or right; the action that names its side earns 1."""

    action_space = spaces.Discrete(2)

    def __init__(self, size: int = 48, channels: int = 1, length: int = 10) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, channels), np.uint8)
        self._length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._step = 0
        return self._show(), {}

    def step(self, action: int):
        reward = float(action == self._side)
        self._step += 1
        return self._show(), reward, self._step == self._length, False, {}

    def _show(self) -> np.ndarray:
        self._side = int(self.np_random.integers(2))
        image = np.zeros(self.observation_space.shape, np.uint8)
        half = image.shape[1] // 2
        image[:, half * self._side : half * (self._side + 1)] = 200
        return image


class Space(gymnasium.Env):
    """Has the spaces that it is given, and does nothing."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action


def register() -> None:
    vector, discrete = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    parts = spaces.Dict({"position": vector})
    entries: dict[str, tuple[Any, dict[str, Any], int | None]] = {
        "Counter-v0": (Counter, {}, None),
        "CutCounter-v0": (Counter, {"length": 100}, 3),
        "PixelCatch-v0": (PixelCatch, {}, None),
        "ColourCatch-v0": (PixelCatch, {"channels": 3}, None),
        "DictObservation-v0": (Space, {"observation": parts, "action": discrete}, None),
        "FromOne-v0": (Space, {"observation": vector, "action": spaces.Discrete(2, start=1)}, None),
    }
    for name, (entry, kwargs, limit) in entries.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry, kwargs=kwargs, max_episode_steps=limit)


register()
