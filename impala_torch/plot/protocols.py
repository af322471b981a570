"""Under which rules runs were played, and whether they can be compared."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from impala_torch.plot.runs import Run
from impala_torch.plot.tables import IMPALA_TORCH


def protocol(run: Run) -> Mapping[str, Any] | None:
    """The rules of a run by name: those of its results.json, or what its flags tell before there
    is one. None for the runs of other programs, which do not write theirs down."""
    if run.program != IMPALA_TORCH:
        return None
    written = run.results.get("protocol")
    return written if isinstance(written, dict) else _from_flags(run.settings)


def warnings(runs: Sequence[Run]) -> list[str]:
    """What keeps the runs from being compared as they stand, in sentences."""
    if len(runs) < 2:
        return []
    known = [rules for run in runs if (rules := protocol(run)) is not None]
    sentences = []
    differing = differences(known)
    if differing:
        sentences.append(f"runs of different protocols: {'; '.join(differing)}")
    others = sorted({run.program for run in runs if run.program != IMPALA_TORCH})
    if others:
        sentences.append(f"protocol unknown: runs of {' and '.join(others)}")
    if any(not rules for rules in known):
        sentences.append("protocol unknown: runs without results.json and config.json")
    return sentences


def differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """'name: value | value' of each rule that is not the same in all protocols that have it."""
    names = dict.fromkeys(name for rules in protocols for name in rules)
    found = []
    for name in names:
        values = dict.fromkeys(_plain(rules[name]) for rules in protocols if name in rules)
        if len(values) > 1:
            found.append(f"{name}: {' | '.join(values)}")
    return found


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What is certain from the flags alone; a rule that is not stays open."""
    rules = {name: flags[name] for name in ("level_name", "reward_clipping") if name in flags}
    if flags.get("num_action_repeats"):
        rules["frame_skip"] = flags["num_action_repeats"]
    if re.fullmatch(r"\w+NoFrameskip-v4|ALE/\w+-v5", str(flags.get("level_name"))):
        rules.setdefault("frame_skip", 4)
        if "episodic_life" in flags:
            rules["life_loss_ends_episode"] = flags["episodic_life"]
    return rules


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
