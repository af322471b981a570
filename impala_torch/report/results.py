"""A run's results card: what it reached, after how much, under which rules, on what machine.

Made from the run's ``metrics.csv`` whenever training ends, so a run that was started several times
has one card over all its starts.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from impala_torch import environments
from impala_torch.flags.config import Config
from impala_torch.learning import checkpoint
from impala_torch.report import provenance, rows
from impala_torch.report.metrics import duration
from impala_torch.report.rows import EPISODES, GAMES, RETURN, Row

FILE = "results.json"
COUNTS = ("frames", "updates", "skipped", "hours", "games")
_MARKS = 4  # of the way to the best return


def write(logdir: pathlib.Path, config: Config, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``results.json``.

    Args:
      logdir: of the run.
      config: its flags.
      counts: ``COUNTS`` of the run, which its rows lack where they could not be written.

    Returns:
      What it holds: ``agent_steps`` and ``environment_frames``, ``hours``, ``games``;
      ``skipped_updates``: whose gradient was not finite;
      ``raw_return``: of whole games, as the game counts; ``episode_return``: of the learner's
      episodes (in Atari with --episodic_life a life each); each the ``last`` mean, of how many
      (``last_games``), and the ``best`` of those of ``games_in_a_mean``, None where none is;
      ``to_score``: when such a mean first reached parts of the way to the best; ``protocol``,
      ``hardware``, ``versions``.
    """
    known = rows.read(logdir / "metrics.csv")
    frames = counts["frames"]
    repeats = environments.level_of(config).num_action_repeats
    card = {
        "level_name": config.level_name,
        "agent_name": config.agent_name,
        "seed": config.seed,
        "agent_steps": frames // repeats,
        "environment_frames": frames,
        "updates": counts["updates"],
        "skipped_updates": counts["skipped"],
        "hours": round(counts["hours"], 5),
        "games": counts["games"],
        "raw_return": _returns(known, RETURN),
        "episode_return": _returns(known, EPISODES),
        "games_in_a_mean": GAMES,
        "to_score": _to_score(known),
        "protocol": provenance.describe(config, training=True),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }
    checkpoint.write_atomically(logdir / FILE, json.dumps(card, indent=2).encode())
    return card


def lines(card: Mapping[str, Any]) -> list[str]:
    """The card as a table for people, a row each line."""
    rules = card["protocol"]
    facts = [
        ("level, agent", f"{card['level_name']}, {card['agent_name']}, seed {card['seed']}"),
        ("agent steps", f"{card['agent_steps']:,}"),
        ("environment frames", f"{card['environment_frames']:,}"),
        ("trained", duration(3600 * (card["hours"] or 0.0))),
        ("whole games", f"{card['games']:,}; mean return {_words(card['raw_return'])}"),
        ("learner's episodes", f"mean return {_words(card['episode_return'])}"),
    ]
    if card["skipped_updates"]:
        facts.append(("skipped updates", f"{card['skipped_updates']:,}, not finite"))
    facts += [
        (
            f"return {one['return']:.1f} first",
            f"after {one['frames'] / 1e6:.2f} M frames, {duration(3600 * one['hours'])}",
        )
        for one in card["to_score"]
    ]
    facts.append(("rules", ", ".join(f"{name} {value}" for name, value in rules.items())))
    machine = card["hardware"]
    gpus = f", {len(machine['gpus'])} GPU(s)" if machine["gpus"] else ""
    facts.append(("machine", f"{machine['processor']}, {machine['cores']} cores{gpus}"))
    width = max(len(name) for name, _ in facts)
    return [f"  {name:<{width}}  {value}" for name, value in facts]


def _returns(known: Sequence[Row], column: str) -> dict[str, float | None]:
    """The last mean of ``column`` and the best one, with when."""
    means = [row for row in known if column in row]
    full = rows.full(means, column)
    best = max(full, key=lambda row: row[column], default=None)
    return {
        "last": means[-1][column] if means else None,
        "last_games": rows.games_in(means[-1], column) if means else 0,
        "best": best[column] if best else None,
        "best_at_frames": best["frames"] if best else None,
        "best_at_hours": best["hours"] if best else None,
    }


def _to_score(known: Sequence[Row]) -> list[dict[str, float]]:
    full = rows.full(known)
    if not full:
        return []
    first = full[0][RETURN]
    best = max(row[RETURN] for row in full)
    reached = []
    for mark in range(1, _MARKS + 1):
        score = first + (best - first) * mark / _MARKS
        row = next(row for row in full if row[RETURN] >= score or math.isclose(row[RETURN], score))
        reached.append({"return": score, "frames": row["frames"], "hours": row["hours"]})
    return reached if best > first else []


def _words(returns: Mapping[str, float | None]) -> str:
    if returns["last"] is None:
        return "unknown: none has ended"
    few = returns["last_games"] != GAMES
    words = f"{returns['last']:.2f}" + (f" (of {returns['last_games']})" if few else "")
    if returns["best"] is None:
        return f"{words}, best unknown: no mean is of {GAMES}"
    return f"{words}, best {returns['best']:.2f}"
