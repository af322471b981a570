"""Any registered gymnasium id with discrete actions and an image or vector observation.

``mypackage.mymodule:MyEnv-v0`` imports the module, which registers the id, first; in every process
that makes one.

Images (uint8, [H, W], [H, W, 1] or [H, W, 3]) are resized to --height x --width and come channels
first, without stacking; vectors come as float32.
"""

import difflib
import functools
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from impala_torch.environments.base import Environment, OnFrame, Place
from impala_torch.environments.episodes import EpisodeTracker
from impala_torch.environments.faults import Guarded, check_finite, close
from impala_torch.flags import plugins
from impala_torch.flags.errors import NotMade, UserError
from impala_torch.structures import EnvironmentSpec, EnvOutput, LevelOptions, ObservationSpec

DEFAULT_REPEATS = 1
_FRAMES_PER_SEC = 30  # of pictures whose environment does not say it


def matches(level_name: str) -> bool:
    """This family takes every name that no other one takes."""
    return True


def environment_spec(level: LevelOptions) -> EnvironmentSpec:
    """Raises UserError for an id that is unknown, not installed or not supported."""
    env = _make(level.level_name)
    try:
        return _spec_of(level, env)
    finally:
        close(env, level.level_name)


def rules(level: LevelOptions) -> dict[str, Any]:
    """The rules of play, as plain values by name; ``episodic_life`` means nothing here."""
    env = _make(level.level_name)
    try:
        spec = _spec_of(level, env)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        limit = level.max_episode_steps or limit
    finally:
        close(env, level.level_name)
    image = spec.observation.dtype == "uint8"
    return {
        "num_actions": spec.num_actions,
        "frame_skip": level.num_action_repeats,
        "max_frames": limit,
        "frame_size": f"{level.width}x{level.height}" if image else None,
        "frame_stack": spec.observation.stack,
        "preprocessing": "area interpolation" if image else "none",
    }


class GymnasiumEnvironment(Environment):
    """E environments of one id, stepped one after the other."""

    def __init__(
        self,
        level: LevelOptions,
        num_envs: int,
        seed: int,
        *,
        num_threads: int = 1,
        on_frame: OnFrame | None = None,
    ) -> None:
        """``episodic_life`` and ``num_threads`` mean nothing here; see ``atari`` for the rest.

        Args:
          on_frame: called with the picture after each of the environment's own steps.

        Raises:
          UserError: the level is unknown or not supported, or has no picture for ``on_frame``.
        """
        self.spec = environment_spec(level)
        self.num_envs = num_envs
        self.place = Place()
        self._level_name = name = level.level_name
        repeats = level.num_action_repeats

        def make(number: int) -> gymnasium.Env:
            options = {} if on_frame is None else {"render_mode": "rgb_array"}
            env: gymnasium.Env = _make(name, level.max_episode_steps, **options)
            env = Guarded(env, name, number, self.place)
            if on_frame is not None:
                env = Watched(env, name, on_frame)
            return ActionRepeat(env, repeats) if repeats > 1 else env

        if on_frame is not None:
            _check_pictures(name)

        makers = [functools.partial(make, number) for number in range(num_envs)]
        self._env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        self.frames_per_sec = float(self._env.metadata.get("render_fps") or _FRAMES_PER_SEC)
        self._seeds: list[int | None] = [
            int(s >> 1) for s in np.random.SeedSequence(seed).generate_state(num_envs)
        ]
        self._repeats = repeats
        self._tracker = EpisodeTracker(num_envs, repeats)

    def reset(self) -> EnvOutput:
        with np.errstate(over="ignore"):  # what does not fit float32 is infinite, and told
            observation, _ = self._env.reset(seed=self._seeds)
        self._tracker.reset()
        return self._first(self._checked(self._convert(observation), None))

    def step(self, actions: np.ndarray) -> EnvOutput:
        with np.errstate(over="ignore"):
            observation, reward, terminated, truncated, info = self._env.step(actions)
        reward = reward.astype(np.float32)
        done = terminated | truncated
        truncated = truncated & ~terminated
        converted = self._checked(self._convert(observation), actions)
        final = None
        if truncated.any():
            final = converted.copy()
            for env in np.flatnonzero(truncated):
                final[env] = self._convert(info["final_obs"][env][None])[0]
            self._checked(final, actions, last=True)
        return EnvOutput(
            reward=reward,
            done=done,
            observation=converted,
            truncated=truncated,
            final_observation=final,
            episodes=self._tracker.step(reward, done, done, self._frames(done)),
        )

    def _frames(self, done: np.ndarray) -> np.ndarray | None:
        """Frames of the last step, [E], where some may have fewer than the repeats."""
        if self._repeats == 1 or not done.any():
            return None
        return np.array(self._env.get_attr("taken"))

    def close(self) -> None:
        self._env.close()

    def _checked(
        self, observation: np.ndarray, actions: np.ndarray | None, last: bool = False
    ) -> np.ndarray:
        """
        Args:
          last: whether it is what episodes ended with, and not what came after.
        """
        if observation.dtype.kind == "f":
            name = "last_step" if last else "steps"
            check_finite(
                self._level_name,
                observation,
                actions,
                lambda env: self._env.envs[env].get_wrapper_attr(name),
            )
        return observation

    def _convert(self, observation: np.ndarray) -> np.ndarray:
        """[E, ...] as the environment gives it -> [E, *spec.observation.shape]."""
        spec = self.spec.observation
        if spec.dtype == "float32":
            with np.errstate(over="ignore"):  # what does not fit is infinite, and told
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
        self.taken = 0  # times that the last action was taken

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        self.taken = 0
        while self.taken < self._repeats:
            self.taken += 1
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class Watched(gymnasium.Wrapper):
    """Hands each step's picture and reward on."""

    def __init__(self, env: gymnasium.Env, level_name: str, on_frame: OnFrame) -> None:
        super().__init__(env)
        self._level_name, self._on_frame = level_name, on_frame

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        try:
            picture: Any = self.env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(
                f"--level_name={self._level_name} needs a package for its pictures that is not "
                f"installed: {error}"
            ) from error
        self._on_frame(picture, float(reward))
        return observation, float(reward), terminated, truncated, info


def _check_pictures(level_name: str) -> None:
    """Raises UserError where a level has none."""
    plain = _make(level_name)
    modes = plain.metadata.get("render_modes") or []
    close(plain, level_name)
    if "rgb_array" not in modes:
        raise UserError(
            f"--level_name={level_name} has no pictures to show or record: its render_modes "
            f"({', '.join(modes) or 'none'}) lack rgb_array"
        )


def _make(level_name: str, limit: int = 0, **options: Any) -> gymnasium.Env:
    """
    Args:
      limit: of steps to an episode; 0 = the level's own.
      options: of ``gymnasium.make``.
    """
    if limit:
        options["max_episode_steps"] = limit
    if ":" in level_name:
        plugins.split("level_name", level_name, "mypackage.mymodule:MyEnv-v0")
        plugins.import_module("level_name", level_name)
    with plugins.told("level_name", level_name, "cannot be made", NotMade):
        return _make_registered(level_name, **options)


def _make_registered(level_name: str, **options: Any) -> gymnasium.Env:
    problem = f"--level_name={level_name}"
    try:
        return gymnasium.make(level_name, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"{problem} needs a package that is not installed: {error}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"{problem} needs the package '{error.name}': install it") from error
    except gymnasium.error.DeprecatedEnv as error:
        raise UserError(f"{problem}: {error}") from error
    except gymnasium.error.UnregisteredEnv as error:
        module, colon, name = level_name.rpartition(":")
        if colon:
            raise UserError(
                f"{problem}: importing '{module}' registers no '{name}': that module must call "
                f"gymnasium.register('{name}', ...)"
            ) from error
        close = difflib.get_close_matches(level_name, gymnasium.registry, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(
            f"{problem} is neither an Atari level (<Game>NoFrameskip-v4, ALE/<Game>-v5) nor a "
            f"registered gymnasium id{hint}"
        ) from error
    except gymnasium.error.Error as error:
        raise UserError(f"{problem}: {error}") from error


def _spec_of(level: LevelOptions, env: gymnasium.Env) -> EnvironmentSpec:
    problem = f"--level_name={level.level_name} is not supported"
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
            shape: tuple[int, ...] = (channels, level.height, level.width)
            return EnvironmentSpec(ObservationSpec(shape, "uint8", 1), int(action.n))
        if len(space.shape) == 1:
            return EnvironmentSpec(ObservationSpec(space.shape, "float32", 1), int(action.n))
    raise UserError(
        f"{problem}: its observation is {space}; supported are vectors (a Box of one dimension) "
        "and uint8 images [H, W], [H, W, 1] or [H, W, 3]"
    )
