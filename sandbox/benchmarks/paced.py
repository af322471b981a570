"""An environment that takes its time: no faster than PACE_MS milliseconds a step, and no work.

So actors differ as machines would, and many of them fit on one.
"""

import os
import time

import gymnasium
import numpy as np

EPISODE_STEPS = 200


class Paced(gymnasium.Env):
    """Noise to look at, two actions, a reward for the first of them."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self._pace = float(os.environ.get("PACE_MS", "10")) / 1000
        self._next = time.monotonic()
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self._look(), {}

    def step(self, action):
        now = time.monotonic()
        if now < self._next:
            time.sleep(self._next - now)
        # Environments of one actor are stepped one after the other: all but the first are late.
        self._next = max(now, self._next) + self._pace
        self._steps += 1
        return self._look(), float(action == 0), False, self._steps == EPISODE_STEPS, {}

    def _look(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


gymnasium.register("Paced-v0", lambda: Paced())
