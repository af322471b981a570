"""A level's options -> E environments with one interface; one module a family.

A family has ``matches(level_name)``, ``environment_spec(level)``, ``rules(level)``,
``DEFAULT_REPEATS`` and an ``Environment`` made as ``(level, num_envs, seed, num_threads=)``, where
``level`` is ``LevelOptions`` that say the number of repeats; ``_FAMILIES`` is asked in order.

Functions take ``LevelOptions``, or a level's name alone where it is played as usual.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from impala_torch.environments import atari, gymnasium_envs, signals
from impala_torch.environments.atari_screen import AtariScreen
from impala_torch.environments.base import Environment, OnFrame
from impala_torch.environments.timeout import TimedEnvironment, within
from impala_torch.flags.config import Config
from impala_torch.flags.errors import EnvironmentFault
from impala_torch.structures import EnvironmentSpec, LevelOptions

log = logging.getLogger(__name__)

_FAMILIES: list[tuple[ModuleType, Callable[..., Environment]]] = [
    (atari, atari.AtariEnvironment),
    (gymnasium_envs, gymnasium_envs.GymnasiumEnvironment),
]


def make_environment(
    level: LevelOptions | str, num_envs: int, seed: int, *, num_threads: int = 1
) -> Environment:
    """E environments of a level.

    Args:
      level: of any family.
      num_envs: E.
      seed: each environment derives its own from it.
      num_threads: of the emulation (Atari).

    Raises:
      UserError: the level is unknown, not installed or not supported.
    """
    level = resolve(level)
    _, make = _family(level.level_name)
    with _their_code(level, "being made"):
        return make(level, num_envs, seed, num_threads=num_threads)


def make_watched(level: LevelOptions | str, seed: int, on_frame: OnFrame) -> Environment:
    """One environment of a level that plays whole games, every frame of which can be seen.

    It plays as the one of ``make_environment`` with the same seed and without episodic life, and
    has ``frames_per_sec``.

    Args:
      on_frame: called with each frame's picture, [H, W, 3] uint8, and its reward.
      For the others see ``make_environment``.

    Raises:
      UserError: as ``make_environment``, or the level has no pictures.
    """
    level = resolve(level)
    with _their_code(level, "being made"):
        if is_atari(level.level_name):
            return AtariScreen(level, seed, on_frame)
        return gymnasium_envs.GymnasiumEnvironment(level, 1, seed, on_frame=on_frame)


def is_atari(level_name: str) -> bool:
    """Whether a level is of one of Atari's families."""
    return atari.matches(level_name)


def rules(level: LevelOptions | str) -> dict[str, Any]:
    """The rules by which a level is played, as plain values by name.

    Raises:
      UserError: as ``make_environment``.
    """
    level = resolve(level)
    with _their_code(level, "being looked at"):
        return _family(level.level_name)[0].rules(level)


def environment_spec(level: LevelOptions | str) -> EnvironmentSpec:
    """What an agent must know of a level. Raises UserError as ``make_environment`` does."""
    level = resolve(level)
    with _their_code(level, "being looked at"):
        return _family(level.level_name)[0].environment_spec(level)


def resolve(level: LevelOptions | str) -> LevelOptions:
    """The options with nothing left open: ``num_action_repeats`` is a number of frames."""
    if isinstance(level, str):
        level = LevelOptions(level)
    usual = _family(level.level_name)[0].DEFAULT_REPEATS
    return level._replace(num_action_repeats=level.num_action_repeats or usual)


def level_of(config: Config) -> LevelOptions:
    """The level that flags name, resolved."""
    return resolve(LevelOptions(*(getattr(config, name) for name in LevelOptions._fields)))


def spec_for(config: Config) -> EnvironmentSpec:
    """``environment_spec`` of the level that flags name."""
    return environment_spec(level_of(config))


def make_for(config: Config, seed: int) -> Environment:
    """``make_environment`` with --num_envs, --actor_threads and the level's flags: an actor's."""
    threads = config.actor_threads or 1
    level = level_of(config)
    return timed(make_environment(level, config.num_envs, seed, num_threads=threads), config)


def timed(environment: Environment, config: Config) -> Environment:
    """An environment whose steps end in --env_timeout, or its process does."""
    if not config.env_timeout:
        return environment
    return TimedEnvironment(environment, config.level_name, config.env_timeout)


@contextlib.contextmanager
def closing(environment: Environment) -> Iterator[None]:
    """Closes environments after the block. A fault of theirs is told first: what broke once may
    not come to an end either."""
    try:
        yield
    except EnvironmentFault as error:
        error.tell(log)
        raise
    finally:
        environment.close()


def limited(level: LevelOptions | str) -> LevelOptions:
    """The level, with a limit of frames to a game where it has none of its own."""
    level = resolve(level)
    if rules(level)["max_frames"] is None:
        level = level._replace(max_episode_steps=atari.MAX_FRAMES)
    return level


@contextlib.contextmanager
def _their_code(level: LevelOptions, doing: str) -> Iterator[None]:
    """Where an environment's own code runs: it ends in time and leaves the process its signals."""
    with within(level.level_name, doing), signals.kept():
        yield


def _family(level_name: str) -> tuple[ModuleType, Callable[..., Environment]]:
    return next(family for family in _FAMILIES if family[0].matches(level_name))
