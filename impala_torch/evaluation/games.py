"""Whole games with an agent, and what they scored."""

import contextlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from impala_torch import environments
from impala_torch.acting.player import Player
from impala_torch.acting.seeds import seeds_of
from impala_torch.agents import Agent
from impala_torch.environments import atari
from impala_torch.evaluation import atari_scores
from impala_torch.flags.config import Config
from impala_torch.machine import cores
from impala_torch.structures import AgentOutput

# Of no worker set: these games differ from those of training with the same --seed.
_WORKER_SET = (1 << 31) - 1


class Game(NamedTuple):
    """One whole game."""

    score: float  # sum of unclipped rewards
    frames: int  # environment frames, each one that was played
    cut: bool = False  # by a limit of frames, and nothing else ended it


class Scores(NamedTuple):
    """What the games of one level scored."""

    level_name: str
    games: list[Game]

    @property
    def atari_game(self) -> str | None:
        """ALE's name of the game; None where the level is no Atari game."""
        return atari.rom_of(self.level_name) if environments.is_atari(self.level_name) else None

    @property
    def summary(self) -> dict[str, Any]:
        """``games`` (how many), ``cut`` (how many of them by a limit of frames), ``mean``,
        ``median``, ``std`` (of a sample; 0 of one game), ``min``, ``max``, and
        ``human_normalised``: the mean between random play (0) and a human's (1), None where no such
        scores are published."""
        scores = [game.score for game in self.games]
        mean, game = statistics.fmean(scores), self.atari_game
        return {
            "games": len(scores),
            "cut": sum(game.cut for game in self.games),
            "mean": mean,
            "median": statistics.median(scores),
            "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "min": min(scores),
            "max": max(scores),
            "human_normalised": game and atari_scores.human_normalised(game, mean),
        }

    def __str__(self) -> str:
        numbers = self.summary
        normalised = numbers["human_normalised"]
        return (
            f"games {numbers['games']}"
            + (f" ({numbers['cut']} cut by the limit of frames)" if numbers["cut"] else "")
            + f"  mean {numbers['mean']:.2f}  "
            f"median {numbers['median']:.2f}  standard deviation {numbers['std']:.2f}  "
            f"minimum {numbers['min']:.2f}  maximum {numbers['max']:.2f}"
            + ("" if normalised is None else f"  human-normalised {normalised:.3f}")
        )


class Enough(Exception):
    """Whoever watched wants no more."""


class Spectator(Protocol):
    """Who watches games, one after the other, frame by frame."""

    def start(self, frames_per_sec: float) -> None:
        """Is told, before the first frame, at what rate frames are in real time."""

    def frame(self, shown: np.ndarray, score: float, value: float) -> None:
        """Sees a frame.

        Args:
          shown: [H, W, 3] uint8, not to be kept.
          score: of the game up to this frame.
          value: the agent's baseline before the step that this frame is of.

        Raises:
          Enough: no more games are to be played.
        """

    def game_over(self, game: Game) -> None:
        """Sees a game end."""


def play(
    config: Config,
    agent: Agent,
    *,
    stream: int = 0,
    on_game: Callable[[Game], None] = lambda game: None,
    on_step: Callable[[int], None] = lambda num_envs: None,
    spectators: Sequence[Spectator] = (),
) -> list[Game]:
    """Plays --test_num_episodes whole games: no episodic life, rewards unclipped.

    Args:
      config: the flags; with --greedy the likeliest actions are taken.
      agent: on the CPU.
      stream: another number makes other games of the same --seed.
      on_game: told each game as it ends.
      on_step: told each step in so many environments.
      spectators: see the games, which are then played one after the other.

    Returns:
      The games, in the order in which they ended; fewer where a spectator had enough.

    Raises:
      UserError: the level is unknown, or has no pictures for the spectators.
    """
    seeds = seeds_of(config.seed, _WORKER_SET, stream)
    stage = _Stage(spectators)
    environment = _environment(config, seeds.environment, stage)
    played: list[Game] = []
    with environments.closing(environment):
        stage.start(environment.frames_per_sec)
        player = Player(agent, environment, seeds.actions, config.greedy)

        def before_step(output: AgentOutput) -> None:
            stage.value = float(output.baseline[0])
            on_step(environment.num_envs)

        def after_game(game: Game) -> None:
            played.append(game)
            stage.game_over(game)
            on_game(game)

        with contextlib.suppress(Enough):
            play_with(player, config.test_num_episodes, after_game, before_step)
    return played


def play_with(
    player: Player,
    games: int,
    on_game: Callable[[Game], None] = lambda game: None,
    before_step: Callable[[AgentOutput], None] = lambda output: None,
) -> list[Game]:
    """Plays whole games in the player's E environments, side by side.

    Every environment plays its own share of the games: were they taken as they end, short games
    would be counted more often than long ones. The agent's state goes from step to step, and
    starts anew with each game.

    Args:
      player: whose environments end an episode with the game only.
      games: how many.
      on_game: told each game as it ends.
      before_step: told what the agent gave for each step, before the step is taken.

    Returns:
      The games, in the order in which they ended.
    """
    environment = player.environment
    num_envs = environment.num_envs
    shares = [games // num_envs + (env < games % num_envs) for env in range(num_envs)]
    played: list[Game] = []
    output = environment.reset()
    while len(played) < games:
        agent_output = player.see(output)
        before_step(agent_output)
        output = environment.step(player.act(agent_output).numpy())
        for env, episode in zip(np.flatnonzero(output.done), output.episodes, strict=True):
            if episode.raw_return is None or episode.raw_frames is None:
                raise ValueError("an episode of the player's environments ended within a game")
            if shares[env]:
                shares[env] -= 1
                cut = bool(output.truncated[env])
                played.append(Game(episode.raw_return, episode.raw_frames, cut))
                on_game(played[-1])
    return played


def num_envs(config: Config) -> int:
    """E: games that an evaluation plays side by side; one where somebody watches."""
    watched = config.record or config.render
    return 1 if watched else min(config.test_num_episodes, config.num_envs)


def _environment(config: Config, seed: int, stage: "_Stage") -> environments.Environment:
    """Environments whose episodes are whole games."""
    level = environments.limited(environments.level_of(config)._replace(episodic_life=False))
    if stage.watched:
        return environments.timed(environments.make_watched(level, seed, stage.frame), config)
    # Emulation sleeps where it has nothing to do; an evaluator has a training beside it.
    threads = config.actor_threads or (cores.usable() if config.mode == "test" else 1)
    made = environments.make_environment(level, num_envs(config), seed, num_threads=threads)
    return environments.timed(made, config)


class _Stage:
    """Shows the frames of one environment to spectators, with the score and value of then."""

    def __init__(self, spectators: Sequence[Spectator]) -> None:
        self._spectators = spectators
        self.watched = bool(spectators)
        self._score = 0.0
        self.value = 0.0

    def start(self, frames_per_sec: float) -> None:
        for spectator in self._spectators:
            spectator.start(frames_per_sec)

    def frame(self, shown: np.ndarray, reward: float) -> None:
        self._score += reward
        for spectator in self._spectators:
            spectator.frame(shown, self._score, self.value)

    def game_over(self, game: Game) -> None:
        self._score = 0.0
        for spectator in self._spectators:
            spectator.game_over(game)


def over_levels(scores: Sequence[Scores]) -> dict[str, Any]:
    """Aggregates over levels: ``levels`` (how many have human-normalised scores), and
    ``median_human_normalised``, ``mean_human_normalised`` of those, None without any."""
    normalised = [one.summary["human_normalised"] for one in scores]
    known = [value for value in normalised if value is not None]
    return {
        "levels": len(known),
        "median_human_normalised": statistics.median(known) if known else None,
        "mean_human_normalised": statistics.fmean(known) if known else None,
    }
