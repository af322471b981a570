"""What an environment does that it must not: told by its name, with the step and the action.

A reward that is no number, an observation that is not finite, an exception: it is the environment's
fault, and the first who sees it is the actor. Nothing of it reaches a learner.
"""

import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from impala_torch.environments.base import Place
from impala_torch.flags.errors import EnvironmentFault, UserError
from impala_torch.structures import LARGEST_REWARD

log = logging.getLogger(__name__)

# What an environment may raise; Ctrl-C is not its own.
_ITS_OWN = (Exception, SystemExit, GeneratorExit)


class Guarded(gymnasium.Wrapper):
    """One environment of several: what it returns is checked, what it raises told as its fault.

    Steps are counted from the last reset. Whether numbers of observations are finite is checked by
    ``check_finite``, over all environments at once.
    """

    def __init__(self, env: gymnasium.Env, level_name: str, number: int, place: Place) -> None:
        super().__init__(env)
        self._level_name, self._number, self._place = level_name, number, place
        self._shape = env.observation_space.shape
        self.steps = 0  # of the episode
        self.last_step = 0  # of the episode before

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        place = self._place
        place.env, place.step, place.action = self._number, 0, None
        self.last_step, self.steps = self.steps, 0
        try:
            observation, info = self.env.reset(**options)
        except UserError:  # what it needs and does not find: told already
            raise
        except _ITS_OWN as error:
            raise self._raised(error) from error
        return self._checked(observation), self._info(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        place = self._place
        place.env, place.step, place.action = self._number, self.steps, action
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except UserError:  # what it needs and does not find: told already
            raise
        except _ITS_OWN as error:
            raise self._raised(error) from error
        number = self._amount(reward)
        if not math.isfinite(number):
            raise self._fault(f"its reward is {number}, which is not finite")
        if abs(number) > LARGEST_REWARD:
            raise self._fault(f"its reward is {number:.3g}; up to {LARGEST_REWARD:.0g} can be used")
        ends = self._flag("terminated", terminated), self._flag("truncated", truncated)
        return self._checked(observation), number, *ends, self._info(info)

    def _amount(self, reward: Any) -> float:
        if not isinstance(reward, (str, bytes)):
            with contextlib.suppress(TypeError, ValueError):
                return float(reward)
            with contextlib.suppress(TypeError, ValueError):
                return float(np.asarray(reward).item())  # an array of one number
        raise self._fault(f"its reward is {_short(reward)}, which is no number")

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if isinstance(value, (bool, int, np.bool_, np.integer)):
            return bool(value)
        raise self._fault(f"its {name} is {_short(value)}, which is neither True nor False")

    def _info(self, info: Any) -> dict[str, Any]:
        """Nothing of it: nobody looks at it, and not every two can be merged into one of arrays."""
        if not isinstance(info, dict):
            raise self._fault(f"its info is {_short(info)}, and no dictionary")
        return {}

    def close(self) -> None:
        close(self.env, self._level_name)

    def _checked(self, observation: Any) -> np.ndarray:
        if observation is None:
            raise self._fault("its observation is None")
        try:
            array = np.asarray(observation)
        except ValueError as error:
            raise self._fault(f"its observation is no array: {_short(error)}") from None
        if array.shape != self._shape:
            raise self._fault(
                f"its observation has shape {array.shape}, and its observation_space {self._shape}"
            )
        if array.dtype.kind not in "biuf":
            raise self._fault(f"its observation is of type {array.dtype}, which is no number")
        return array

    def _raised(self, error: BaseException) -> EnvironmentFault:
        return self._fault(f"it raised {type(error).__name__}: {_short(error)}")

    def _fault(self, words: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self._place.words(self._level_name)}: {words}")


def close(env: gymnasium.Env, level_name: str) -> None:
    """Closes an environment; what that raises is told, and costs nothing."""
    try:
        env.close()
    except _ITS_OWN as error:
        log.warning(
            "--level_name=%s: its close() raised %s: %s",
            *(level_name, type(error).__name__, _short(error)),
        )


def check_finite(
    level_name: str,
    observation: np.ndarray,
    actions: np.ndarray | None,
    step_of: Callable[[int], int],
) -> None:
    """Raises EnvironmentFault where an environment's observation is not finite.

    Args:
      level_name: of the environments.
      observation: of all of them, [E, D] float32.
      actions: that led to it, [E]; None after a reset.
      step_of: at which step of its episode an environment is; 0 = it was reset.
    """
    if np.isfinite(observation).all():
        return
    env, number = np.argwhere(~np.isfinite(observation))[0].tolist()
    place = Place()
    place.env, place.step = env, step_of(env)
    if place.step and actions is not None:
        place.action = actions[env]
    raise EnvironmentFault(
        f"{place.words(level_name)}: number {number} of its observation is "
        f"{observation[env, number]}, which is not finite (as float32)"
    )


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
