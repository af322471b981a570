"""What every environment is to an actor: E environments stepped together."""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np

from impala_torch.structures import EnvironmentSpec, EnvOutput

# Gets a picture, [H, W, 3] uint8, and the reward that came with it.
OnFrame = Callable[[np.ndarray, float], None]


class Place:
    """Which of E environments is at which of its steps, for who tells what went wrong there.

    As far as it is known: environments that are stepped together leave it as it is.
    """

    def __init__(self) -> None:
        self.env: int | None = None
        self.step = 0  # since its last reset
        self.action: Any = None  # None: it is being reset

    def words(self, level_name: str) -> str:
        if self.env is None:
            return f"--level_name={level_name}"
        doing = "its reset" if self.action is None else f"step {self.step}, action {self.action}"
        return f"--level_name={level_name}, environment {self.env}, {doing}"


class Environment(abc.ABC):
    """E environments that reset themselves within the step that ends an episode.

    When an episode ends, ``step`` returns the first observation of the next one, ``done`` true,
    and the last reward of the episode that ended. Where a time limit cut it (and nothing else
    ended it), ``truncated`` is true and ``final_observation`` holds what was seen last.
    Rewards are as the environment gives them, float32.
    """

    spec: EnvironmentSpec
    num_envs: int
    frames_per_sec: float = 60.0  # at which pictures of it play in real time
    place = Place()  # of those that tell it, another one each

    @abc.abstractmethod
    def reset(self) -> EnvOutput:
        """Starts all episodes: reward 0, ``done`` true everywhere."""

    @abc.abstractmethod
    def step(self, actions: np.ndarray) -> EnvOutput:
        """Takes a step in each environment; ``actions`` [E] int64."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what the environments hold."""

    def _first(self, observation: np.ndarray) -> EnvOutput:
        """The output of a reset."""
        return EnvOutput(
            reward=np.zeros(self.num_envs, np.float32),
            done=np.ones(self.num_envs, bool),
            observation=observation,
            truncated=np.zeros(self.num_envs, bool),
            final_observation=None,
            episodes=[],
        )
