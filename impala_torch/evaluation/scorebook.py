"""What evaluations leave in a directory: a row of ``evaluation.csv`` and ``evaluation.json``."""

import csv
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from impala_torch import environments
from impala_torch.evaluation import atari_scores, games
from impala_torch.evaluation.games import Scores
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.report import provenance
from impala_torch.report.appended import AppendedCsv

CSV, JSON = "evaluation.csv", "evaluation.json"

# Columns of evaluation.csv, in order; a later version may add some at the end, never rename one.
COLUMNS = (
    "time",  # seconds since 1970
    "hours",  # of training until then
    "frames",  # environment frames of training until then
    "updates",
    "source",  # training (beside it), or test (mode)
    "level_name",
    "actions",  # sampled or greedy
    "games",
    "mean",
    "median",
    "std",
    "min",
    "max",
    "human_normalised",  # mean between random play (0) and a human's (1); empty if not known
    "secs",  # that the games took
    "cut",  # games that a limit of frames ended
)


class Trained(NamedTuple):
    """How far the agent was trained that played."""

    frames: int
    updates: int
    hours: float


def check_writable(folder: pathlib.Path, flag: str) -> None:
    """Raises UserError naming ``flag`` where nothing can be written, before games are played."""
    for path in (folder / CSV, folder / JSON, folder):
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"{flag}: {path} cannot be written to, and evaluations leave results")


def row(
    config: Config, trained: Trained, scores: Scores, secs: float, source: str
) -> dict[str, Any]:
    """A row of evaluation.csv, by column name."""
    return {
        "time": round(time.time(), 2),
        "hours": trained.hours,
        "frames": trained.frames,
        "updates": trained.updates,
        "source": source,
        "level_name": config.level_name,
        "actions": "greedy" if config.greedy else "sampled",
        **scores.summary,
        "secs": secs,
    }


def append(folder: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Adds a row to ``folder``'s evaluation.csv. Raises OSError where it cannot."""
    table = AppendedCsv(folder / CSV, COLUMNS)
    try:
        table.append(values)
    finally:
        table.close()


def rows(folder: pathlib.Path) -> list[dict[str, str]]:
    """The rows of ``folder``'s evaluation.csv, oldest first; none where there is no file."""
    try:
        with open(folder / CSV, newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def card(
    config: Config, trained: Trained, scores: Scores, secs: float, checkpoint_name: str
) -> dict[str, Any]:
    """What evaluation.json holds of one level: all that a number needs to be judged.

    Training's counts (``trained``) and the evaluation's (``played``) are apart, and in each the
    agent's steps and the environment's frames.
    """
    repeats = environments.level_of(config).num_action_repeats
    played = sum(game.frames for game in scores.games)
    steps = sum(-(-game.frames // repeats) for game in scores.games)  # a last one may be cut short
    reference = atari_scores.GAMES.get(scores.atari_game or "")
    return {
        "level_name": config.level_name,
        "agent_name": config.agent_name,
        "checkpoint": checkpoint_name,
        **scores.summary,
        "scores": [game.score for game in scores.games],
        "game_frames": [game.frames for game in scores.games],
        "random_score": reference and reference.random,
        "human_score": reference and reference.human,
        "reference": reference and atari_scores.SOURCE,
        "trained": {
            "agent_steps": trained.frames // repeats,
            "environment_frames": trained.frames,
            "updates": trained.updates,
            "hours": trained.hours,
        },
        "played": {
            "agent_steps": steps,
            "environment_frames": played,
            "secs": round(secs, 2),
            "seed": config.seed,
            "num_envs": games.num_envs(config),
        },
        "protocol": provenance.describe(config, training=False),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_card(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes ``folder``'s evaluation.json, whole or not at all."""
    checkpoint.write_atomically(folder / JSON, json.dumps(content, indent=2).encode())
