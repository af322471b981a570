"""Atari on ALE's own vector environment, with DeepMind's preprocessing, as single frames.

Two families of level names:

* ``<Game>NoFrameskip-v4``: no sticky actions;
* ``ALE/<Game>-v5``: actions stick with probability 0.25, as gymnasium defines the id.

Both have the game's minimal action set, 0 to 29 no-ops at the start (where FIRE is an action, it is
pressed first, and is one of them if there are any), the maximum over the last two frames, 84x84
grayscale, and games cut after 108,000 frames (half an hour of play). A life lost ends the learner's
episode if asked for, and the same game goes on.
"""

import difflib
import re
from typing import Any

import ale_py
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from impala_torch.environments.base import Environment
from impala_torch.environments.episodes import EpisodeTracker
from impala_torch.flags.errors import UserError
from impala_torch.structures import EnvironmentSpec, EnvOutput, LevelOptions, ObservationSpec

STACK = 4
DEFAULT_REPEATS = 4
MAX_FRAMES = 108_000
NOOP_MAX = 30  # a game starts with fewer no-ops than that
_STICKY = 0.25

# ALE prints a page about each game it loads.
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

_CLASSIC = re.compile(r"(?P<game>[A-Za-z0-9]+)NoFrameskip-v4")
_ALE = re.compile(r"ALE/(?P<game>[A-Za-z0-9]+)-v5")


def matches(level_name: str) -> bool:
    """Whether the name is of an Atari family (not whether there is such a game)."""
    return bool(_CLASSIC.fullmatch(level_name) or _ALE.fullmatch(level_name))


def environment_spec(level: LevelOptions) -> EnvironmentSpec:
    """Raises UserError for a game that does not exist."""
    ale = ale_py.ALEInterface()
    ale.loadROM(str(roms.get_rom_path(rom_of(level.level_name))))
    actions = len(ale.getMinimalActionSet())
    return EnvironmentSpec(ObservationSpec((level.height, level.width), "uint8", STACK), actions)


def rules(level: LevelOptions) -> dict[str, Any]:
    """The rules of play, as plain values by name; see ``impala_torch.report.provenance``."""
    spec, repeats = environment_spec(level), level.num_action_repeats
    return {
        "sticky_actions": sticky_actions(level.level_name),
        "noops": f"0 to {NOOP_MAX - 1}",
        "life_loss_ends_episode": level.episodic_life,
        "action_set": "minimal",
        "num_actions": spec.num_actions,
        "frame_skip": repeats,
        "max_frames": level.max_episode_steps or MAX_FRAMES,
        "frame_size": f"{level.width}x{level.height}",
        "frame_stack": STACK,
        "preprocessing": (
            f"grayscale{', maximum of the last 2 frames' if repeats > 1 else ''}, area "
            "interpolation, FIRE at the start where it is an action"
        ),
    }


def sticky_actions(level_name: str) -> float:
    """The probability that the game takes the action before once more, at each frame."""
    return _STICKY if _ALE.fullmatch(level_name) else 0.0


def seeds_of(seed: int, num_envs: int) -> np.ndarray:
    """The seed of each of E games, [E] int64 of up to 31 bits."""
    return np.random.SeedSequence(seed).generate_state(num_envs).astype(np.int64) >> 1


class AtariEnvironment(Environment):
    """E games of one level; see the module."""

    def __init__(
        self,
        level: LevelOptions,
        num_envs: int,
        seed: int,
        *,
        num_threads: int = 1,
        max_frames: int = MAX_FRAMES,
        noop_max: int = NOOP_MAX,
    ) -> None:
        """
        Args:
          level: with a number of repeats.
          seed: from which each game's own seed is derived.
          num_threads: of the emulation.
          max_frames: after which a game is cut.
          noop_max: a game starts with fewer no-ops than that, but with FIRE where it is an action.
        """
        self.spec = environment_spec(level)
        self.num_envs = num_envs
        self._env = AtariVectorEnv(
            rom_of(level.level_name),
            num_envs,
            num_threads=min(num_threads, num_envs),
            max_num_frames_per_episode=level.max_episode_steps or max_frames,
            repeat_action_probability=sticky_actions(level.level_name),
            full_action_space=False,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=level.height,
            img_width=level.width,
            # The stack is made where the network runs: frames travel once, not K times.
            stack_num=1,
            frameskip=level.num_action_repeats,
            # Over single frames a maximum of two would mix two steps.
            maxpool=level.num_action_repeats > 1,
            noop_max=noop_max,
            # ALE's episodic_life restarts the game with each life; life_loss_info only tells.
            episodic_life=False,
            life_loss_info=level.episodic_life,
            reward_clipping=False,
            use_fire_reset=True,
        )
        self._seeds = seeds_of(seed, num_envs)
        self._tracker = EpisodeTracker(num_envs, level.num_action_repeats)
        self._repeats = level.num_action_repeats
        # Emulated frames, with those before a game's first observation: of the game, and in all.
        self._frame_number = np.zeros(num_envs, np.int64)
        self._all_frames = np.zeros(num_envs, np.int64)

    def reset(self) -> EnvOutput:
        observation, info = self._env.reset(seed=self._seeds.astype(np.int32))
        self._remember(info)
        self._tracker.reset()
        return self._first(observation[:, 0])

    def step(self, actions: np.ndarray) -> EnvOutput:
        observation, reward, terminated, truncated, info = self._env.step(actions)
        reward = reward.astype(np.float32)
        done = terminated | truncated
        # A new game's frames count from its start again; after a life lost they go on.
        game_over = done & (info["episode_frame_number"] <= self._frame_number)
        frames = self._frames(info, game_over) if done.any() else None
        self._remember(info)
        truncated = truncated & ~terminated
        final = info["final_obs"][:, 0] if truncated.any() else None
        return EnvOutput(
            reward=reward,
            done=done,
            observation=observation[:, 0],
            truncated=truncated,
            final_observation=final,
            episodes=self._tracker.step(reward, done, game_over, frames),
        )

    def _frames(self, info: dict[str, np.ndarray], game_over: np.ndarray) -> np.ndarray:
        """Frames of the last step, [E]: fewer than the repeats where a game ended within it."""
        # Of all frames since the step before, those of the new game's start are not the step's.
        own = info["frame_number"] - self._all_frames - info["episode_frame_number"]
        return np.where(game_over, np.clip(own, 1, self._repeats), self._repeats)

    def _remember(self, info: dict[str, np.ndarray]) -> None:
        self._frame_number = info["episode_frame_number"].copy()
        self._all_frames = info["frame_number"].copy()

    def close(self) -> None:
        self._env.close()


def rom_of(level_name: str) -> str:
    """ALE's name of a level's game, as ``space_invaders``. Raises UserError if there is none."""
    match = _CLASSIC.fullmatch(level_name) or _ALE.fullmatch(level_name)
    assert match, level_name
    game = match["game"]
    # SpaceInvaders -> space_invaders
    rom = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", game).lower()
    known = {name.replace("_", ""): name for name in roms.get_all_rom_ids()}
    found = known.get(rom.replace("_", ""))
    if found is None or not game[:1].isupper():
        close = difflib.get_close_matches(rom.replace("_", ""), known, n=3)
        names = ["".join(part.title() for part in known[name].split("_")) for name in close]
        hint = f"; did you mean {', '.join(names)}?" if names else ""
        raise UserError(f"--level_name={level_name}: there is no Atari game '{game}'{hint}")
    return found
