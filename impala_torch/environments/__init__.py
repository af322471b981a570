"""Level name -> E environments with one interface; one module a family.

A family has ``matches(level_name)``, ``environment_spec(level_name, width=, height=)``,
``DEFAULT_REPEATS`` and an ``Environment``; ``_FAMILIES`` is asked in order.
"""

from types import ModuleType

from impala_torch.environments import atari, gymnasium_envs
from impala_torch.environments.base import Environment
from impala_torch.structures import EnvironmentSpec

_FAMILIES: list[tuple[ModuleType, type[Environment]]] = [
    (atari, atari.AtariEnvironment),
    (gymnasium_envs, gymnasium_envs.GymnasiumEnvironment),
]


def make_environment(
    level_name: str,
    num_envs: int,
    seed: int,
    *,
    width: int = 84,
    height: int = 84,
    num_action_repeats: int = 0,
    episodic_life: bool = True,
    num_threads: int = 1,
) -> Environment:
    """E environments of a level.

    Args:
      level_name: of any family.
      num_envs: E.
      seed: each environment derives its own from it.
      width, height: of image observations, pixels.
      num_action_repeats: environment frames per step; 0 = the usual of the level.
      episodic_life: a life lost ends the learner's episode (Atari).
      num_threads: of the emulation (Atari).

    Raises:
      UserError: the level is unknown, not installed or not supported.
    """
    _, make = _family(level_name)
    return make(
        level_name,
        num_envs,
        seed,
        width=width,
        height=height,
        num_action_repeats=action_repeats(level_name, num_action_repeats),
        episodic_life=episodic_life,
        num_threads=num_threads,
    )  # type: ignore[call-arg]


def environment_spec(level_name: str, *, width: int, height: int) -> EnvironmentSpec:
    """What an agent must know of a level. Raises UserError as ``make_environment`` does."""
    return _family(level_name)[0].environment_spec(level_name, width=width, height=height)


def action_repeats(level_name: str, num_action_repeats: int) -> int:
    """Environment frames per agent step: what was asked for, or the usual of the level."""
    return num_action_repeats or _family(level_name)[0].DEFAULT_REPEATS


def _family(level_name: str) -> tuple[ModuleType, type[Environment]]:
    return next(family for family in _FAMILIES if family[0].matches(level_name))
