"""Environments for tests, registered with gymnasium when this module is imported.

As a level: ``--level_name=tests.fakes:PixelCatch-v0`` with the project's root on PYTHONPATH.
"""

import os
import signal
import subprocess
import sys
import threading
import time
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


class Faulty(gymnasium.Env):
    """Breaks the contract in one way from step ``at`` on, or at that one only.

    ``how``: what it does then, a method's name below. Its episodes have no end.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, how: str, at: int = 3, once: bool = False) -> None:
        self._how, self._at, self._once = how, at, once

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._step = 0
        self._buffer = np.zeros(2)
        if self._at == 0:
            return getattr(self, self._how)()[0], {}
        return np.zeros(2), {}

    def step(self, action: int):
        self._step += 1
        if self._step == self._at or (self._step > self._at and not self._once):
            return getattr(self, self._how)()
        return self._plain()

    def _plain(self, observation: Any = None, reward: Any = 1.0):
        seen = np.full(2, self._step, np.float64) if observation is None else observation
        return seen, reward, False, False, {}

    def endless(self):
        return self._plain()

    def raises(self):
        raise KeyError("no such key")

    def hangs(self):
        time.sleep(3600)

    def nan_reward(self):
        return self._plain(reward=float("nan"))

    def infinite_reward(self):
        return self._plain(reward=np.float32("-inf"))

    def none_reward(self):
        return self._plain(reward=None)

    def huge_reward(self):
        return self._plain(reward=3e38)

    def nan_observation(self):
        return self._plain(np.array([0.0, np.nan]))

    def huge_observation(self):
        """Finite as float64, but not as the float32 that it becomes."""
        return self._plain(np.array([1e300, 0.0]))

    def large_reward(self):
        """The largest that may be."""
        return self._plain(reward=1e12)

    def none_observation(self):
        return None, 1.0, False, False, {}

    def other_shape(self):
        return self._plain(np.zeros(3))

    def objects(self):
        return self._plain([None, None])

    def complex_numbers(self):
        return self._plain(np.array([1j, 0]))

    def ragged(self):
        return self._plain([[0.0], [0.0, 1.0]])

    def no_info(self):
        return (*self._plain()[:4], None)

    def word_for_an_end(self):
        return np.zeros(2), 1.0, "no", False, {}

    def word_for_a_reward(self):
        return self._plain(reward="1.0")

    def leaves(self):
        sys.exit(0)

    def varying_info(self):
        """Each is allowed, and no two of them can be merged into one of arrays."""
        infos: list[dict[str, Any]] = [
            {"legal": np.arange(self._step)},
            {"legal": {"a": None}},
            {"legal": 1 << 70, "final_obs": "mine"},
            {"legal": [], "_legal": "?"},
        ]
        return (*self._plain()[:4], infos[int(self.np_random.integers(len(infos)))])

    def starts_a_process(self):
        """A simulator that hangs, and its environment with it: neither knows of the other's end."""
        child = subprocess.Popen(["sleep", "600"])
        with open(os.environ["FAKES_PIDS"], "a") as file:
            file.write(f"{child.pid}\n")
        child.wait()

    def slow(self):
        time.sleep(0.7)
        return self._plain()

    def exits(self):
        os._exit(0)

    def four_values(self):
        return np.zeros(2), 1.0, False, {}


class Fussy(gymnasium.Env):
    """Plays well, and does something else where it is made or closed.

    Args:
      how: "raise" or "hang".
      when: "made" or "closed".
      once: an environment variable that names a file: only where that does not exist, which is
        made then, and only in an actor that has made one environment to look at it and another.
    """

    _made = 0

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, how: str, when: str, once: str = "") -> None:
        self._how, self._when, self._once = how, when, once and os.environ[once]
        Fussy._made += 1
        self._is_at("made")

    def _is_at(self, when: str) -> None:
        if when != self._when:
            return
        if self._once:
            is_actor = "--job_name=actor" in sys.argv
            if not is_actor or Fussy._made <= 3 or os.path.exists(self._once):
                return
            open(self._once, "w").close()
        if self._how == "hang":
            time.sleep(3600)
        raise OSError("no display")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action: int):
        return np.zeros(2), 1.0, bool(self.np_random.random() < 0.1), False, {}

    def close(self) -> None:
        self._is_at("closed")


class Careless(Fussy):
    """Leaves a thread behind, and takes the signals."""

    def __init__(self) -> None:
        super().__init__("", "")
        threading.Thread(target=time.sleep, args=(3600,), name="reader").start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


class Space(gymnasium.Env):
    """Has the spaces that it is given, and does nothing."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action


def register() -> None:
    vector, discrete = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    parts = spaces.Dict({"position": vector})
    entries: dict[str, tuple[Any, dict[str, Any], int | None]] = {
        "Counter-v0": (Counter, {}, None),
        "Careless-v0": (Careless, {}, None),
        "CutCounter-v0": (Counter, {"length": 100}, 3),
        "PixelCatch-v0": (PixelCatch, {}, None),
        "ColourCatch-v0": (PixelCatch, {"channels": 3}, None),
        "DictObservation-v0": (Space, {"observation": parts, "action": discrete}, None),
        "FromOne-v0": (Space, {"observation": vector, "action": spaces.Discrete(2, start=1)}, None),
    }
    for how in ("raise", "hang"):
        for when in ("made", "closed"):
            kwargs, name = {"how": how, "when": when}, f"{how.title()}When{when.title()}"
            entries[f"{name}-v0"] = (Fussy, kwargs, None)
            entries[f"{name}Once-v0"] = (Fussy, {**kwargs, "once": "FUSSY_ONCE"}, None)
    faults = [name for name in vars(Faulty) if not name.startswith("_")]
    for how in set(faults) - {"observation_space", "action_space", "reset", "step"}:
        name = how.title().replace("_", "")
        entries[f"{name}-v0"] = (Faulty, {"how": how}, None)
        entries[f"{name}Once-v0"] = (Faulty, {"how": how, "once": True}, None)
    for name, (entry, kwargs, limit) in entries.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry, kwargs=kwargs, max_episode_steps=limit)


register()
