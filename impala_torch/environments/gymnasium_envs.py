"""Any registered gymnasium id with discrete actions and an image or vector observation.

Images (uint8, [H, W], [H, W, 1] or [H, W, 3]) are resized to --height x --width and come channels
first, without stacking; vectors come as float32.
"""

import difflib
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from impala_torch.config import UserError
from impala_torch.environments.base import Environment
from impala_torch.environments.episodes import EpisodeTracker
from impala_torch.structures import EnvironmentSpec, EnvOutput, ObservationSpec

DEFAULT_REPEATS = 1


def matches(level_name: str) -> bool:
    """This family takes every name that no other one takes."""
    return True


def environment_spec(level_name: str, *, width: int, height: int) -> EnvironmentSpec:
    """Raises UserError for an id that is unknown, not installed or not supported."""
    env = _make(level_name)
    try:
        return _spec_of(level_name, env, width, height)
    finally:
        env.close()


class GymnasiumEnvironment(Environment):
    """E environments of one id, stepped one after the other."""

    def __init__(
        self,
        level_name: str,
        num_envs: int,
        seed: int,
        *,
        width: int = 84,
        height: int = 84,
        num_action_repeats: int = DEFAULT_REPEATS,
        episodic_life: bool = True,
        num_threads: int = 1,
    ) -> None:
        """``episodic_life`` and ``num_threads`` mean nothing here; see ``atari`` for the rest."""
        self.spec = environment_spec(level_name, width=width, height=height)
        self.num_envs = num_envs

        def make() -> gymnasium.Env:
            env = _make(level_name)
            return ActionRepeat(env, num_action_repeats) if num_action_repeats > 1 else env

        self._env = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self._seeds: list[int | None] = [
            int(s >> 1) for s in np.random.SeedSequence(seed).generate_state(num_envs)
        ]
        self._tracker = EpisodeTracker(num_envs, num_action_repeats)

    def reset(self) -> EnvOutput:
        observation, _ = self._env.reset(seed=self._seeds)
        self._tracker.reset()
        return self._first(self._convert(observation))

    def step(self, actions: np.ndarray) -> EnvOutput:
        observation, reward, terminated, truncated, info = self._env.step(actions)
        reward = reward.astype(np.float32)
        done = terminated | truncated
        truncated = truncated & ~terminated
        converted = self._convert(observation)
        final = None
        if truncated.any():
            final = converted.copy()
            for env in np.flatnonzero(truncated):
                final[env] = self._convert(info["final_obs"][env][None])[0]
        return EnvOutput(
            reward=reward,
            done=done,
            observation=converted,
            truncated=truncated,
            final_observation=final,
            episodes=self._tracker.step(reward, done, done),
        )

    def close(self) -> None:
        self._env.close()

    def _convert(self, observation: np.ndarray) -> np.ndarray:
        """[E, ...] as the environment gives it -> [E, *spec.observation.shape]."""
        spec = self.spec.observation
        if spec.dtype == "float32":
            return observation.astype(np.float32)
        channels, height, width = spec.shape
        images = observation.reshape(*observation.shape[:3], channels)
        if images.shape[1:3] != (height, width):
            resized = [
                cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images
            ]
            images = np.stack(resized).reshape(len(images), height, width, channels)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


class ActionRepeat(gymnasium.Wrapper):
    """Takes each action several times, or until the episode ends, and sums the rewards."""

    def __init__(self, env: gymnasium.Env, repeats: int) -> None:
        super().__init__(env)
        self._repeats = repeats

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self._repeats):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def _make(level_name: str) -> gymnasium.Env:
    problem = f"--level_name={level_name}"
    try:
        return gymnasium.make(level_name)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"{problem} needs a package that is not installed: {error}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"{problem} needs the package '{error.name}': install it") from error
    except gymnasium.error.DeprecatedEnv as error:
        raise UserError(f"{problem}: {error}") from error
    except gymnasium.error.UnregisteredEnv as error:
        close = difflib.get_close_matches(level_name, gymnasium.registry, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(
            f"{problem} is neither an Atari level (<Game>NoFrameskip-v4, ALE/<Game>-v5) nor a "
            f"registered gymnasium id{hint}"
        ) from error
    except gymnasium.error.Error as error:
        raise UserError(f"{problem}: {error}") from error


def _spec_of(level_name: str, env: gymnasium.Env, width: int, height: int) -> EnvironmentSpec:
    problem = f"--level_name={level_name} is not supported"
    action = env.action_space
    if not isinstance(action, spaces.Discrete):
        kind = "continuous" if isinstance(action, spaces.Box) else type(action).__name__
        raise UserError(f"{problem}: its actions are {kind}, and only Discrete ones are learned")
    if action.start != 0:
        raise UserError(f"{problem}: its actions start at {action.start} instead of 0")
    space = env.observation_space
    if isinstance(space, spaces.Box):
        image = space.dtype == np.uint8 and len(space.shape) in (2, 3)
        channels = space.shape[2] if len(space.shape) == 3 else 1
        if image and channels in (1, 3):
            shape: tuple[int, ...] = (channels, height, width)
            return EnvironmentSpec(ObservationSpec(shape, "uint8", 1), int(action.n))
        if len(space.shape) == 1:
            return EnvironmentSpec(ObservationSpec(space.shape, "float32", 1), int(action.n))
    raise UserError(
        f"{problem}: its observation is {space}; supported are vectors (a Box of one dimension) "
        "and uint8 images [H, W], [H, W, 1] or [H, W, 3]"
    )
