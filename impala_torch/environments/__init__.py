"""Level name -> E environments with one interface; one module a family.

A family has ``matches(level_name)``, ``environment_spec(level_name, width=, height=)``,
``rules(level_name, ...)``, ``DEFAULT_REPEATS`` and an ``Environment``; ``_FAMILIES`` is asked in
order.
"""

from types import ModuleType
from typing import Any

from impala_torch.environments import atari, gymnasium_envs
from impala_torch.environments.atari_screen import AtariScreen
from impala_torch.environments.base import Environment, OnFrame
from impala_torch.flags.config import Config
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


def make_watched(
    level_name: str,
    seed: int,
    on_frame: OnFrame,
    *,
    width: int = 84,
    height: int = 84,
    num_action_repeats: int = 0,
) -> Environment:
    """One environment of a level that plays whole games, every frame of which can be seen.

    It plays as the one of ``make_environment`` with the same seed, and has ``frames_per_sec``.

    Args:
      on_frame: called with each frame's picture, [H, W, 3] uint8, and its reward.
      For the others see ``make_environment``.

    Raises:
      UserError: as ``make_environment``, or the level has no pictures.
    """
    repeats = action_repeats(level_name, num_action_repeats)
    size: dict[str, Any] = {"width": width, "height": height, "num_action_repeats": repeats}
    if is_atari(level_name):
        return AtariScreen(level_name, seed, on_frame, **size)
    return gymnasium_envs.GymnasiumEnvironment(level_name, 1, seed, on_frame=on_frame, **size)


def is_atari(level_name: str) -> bool:
    """Whether a level is of one of Atari's families."""
    return atari.matches(level_name)


def rules(
    level_name: str,
    *,
    width: int,
    height: int,
    num_action_repeats: int = 0,
    episodic_life: bool = True,
) -> dict[str, Any]:
    """The rules by which a level is played, as plain values by name. Arguments as above."""
    return _family(level_name)[0].rules(
        level_name,
        width=width,
        height=height,
        num_action_repeats=action_repeats(level_name, num_action_repeats),
        episodic_life=episodic_life,
    )


def environment_spec(level_name: str, *, width: int, height: int) -> EnvironmentSpec:
    """What an agent must know of a level. Raises UserError as ``make_environment`` does."""
    return _family(level_name)[0].environment_spec(level_name, width=width, height=height)


def spec_for(config: Config) -> EnvironmentSpec:
    """``environment_spec`` of the level and size that flags name."""
    return environment_spec(config.level_name, width=config.width, height=config.height)


def make_for(config: Config, seed: int) -> Environment:
    """``make_environment`` with --num_envs, --actor_threads and the level's flags: an actor's."""
    return make_environment(
        config.level_name,
        config.num_envs,
        seed,
        width=config.width,
        height=config.height,
        num_action_repeats=config.num_action_repeats,
        episodic_life=config.episodic_life,
        num_threads=config.actor_threads or 1,
    )


def action_repeats(level_name: str, num_action_repeats: int) -> int:
    """Environment frames per agent step: what was asked for, or the usual of the level."""
    return num_action_repeats or _family(level_name)[0].DEFAULT_REPEATS


def repeats_for(config: Config) -> int:
    """``action_repeats`` of the level that flags name."""
    return action_repeats(config.level_name, config.num_action_repeats)


def _family(level_name: str) -> tuple[ModuleType, type[Environment]]:
    return next(family for family in _FAMILIES if family[0].matches(level_name))
