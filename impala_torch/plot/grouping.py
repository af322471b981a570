"""Which runs are seeds of one setting, and what to call them."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from impala_torch.flags.config import Config, having
from impala_torch.plot.runs import Run, short_names
from impala_torch.plot.tables import IMPALA_TORCH

GROUPS = ("setting", "none", "folder")
_MOST_NAMED = 3  # flags in a label

# Flags that may differ between seeds of one setting: where a run is, and what it leaves.
_OF_ONE_RUN = {"seed", *having(affects_learning=False)}
# The same of TorchBeast and moolib.
_OF_ONE_OF_THEIRS = (
    *("xpid", "savedir", "disable_checkpoint", "pipes_basename"),
    *("localdir", "local_name", "project", "group", "entity", "connect", "wandb"),
)
_SAY_THEMSELVES = {*having(says_itself=True), "env", "env.name"}  # the last two are theirs


class Group(NamedTuple):
    """Runs that are drawn as one line."""

    label: str
    runs: tuple[Run, ...]


def grouped(runs: Sequence[Run], by: str) -> list[Group]:
    """Puts runs together.

    Args:
      runs: at least one.
      by: setting (all flags the same, but for the seed and where the run is), none (each run for
        itself), or folder (the one that the runs' folders are in).
    """
    names = dict(zip((run.table.path for run in runs), short_names(runs), strict=True))
    members: dict[Any, list[Run]] = {}
    for run in runs:
        members.setdefault(_key(run, by), []).append(run)
    groups = list(members.values())
    labels = _labels(groups, names, by)
    return [Group(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]


def _key(run: Run, by: str) -> Any:
    if by == "folder":
        return os.path.dirname(os.path.abspath(run.folder))
    if by == "none" or not run.settings:
        return run.table.path
    return run.program, json.dumps(_setting(run), sort_keys=True, default=str)


def _setting(run: Run) -> dict[str, Any]:
    """The flags that make a setting. A flag that an older run does not know has its default."""
    if run.program != IMPALA_TORCH:
        return {n: value for n, value in run.settings.items() if n not in _OF_ONE_OF_THEIRS}
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    settings = {**defaults, **run.settings}
    return {name: value for name, value in settings.items() if name not in _OF_ONE_RUN}


def _labels(groups: Sequence[Sequence[Run]], names: Mapping[Any, str], by: str) -> list[str]:
    """A label each: what is peculiar to the group's setting, or its folder's name."""
    labels = []
    for group in groups:
        first = group[0]
        label = names[first.table.path]
        if by == "folder":
            label = os.path.basename(_key(first, "folder"))
        elif by == "setting":
            alike = [other[0] for other in groups if other[0].program == first.program]
            alone = first.level if len(groups) == 1 < len(group) else None
            label = _peculiar(first, alike) or alone or _common(group, names)
        own = first.program == IMPALA_TORCH
        labels.append(label if own else f"{first.program}: {label}")
    if len(set(labels)) == len(labels):
        return labels
    return [_common(group, names) for group in groups]


def _peculiar(run: Run, others: Sequence[Run]) -> str:
    """'flag=value' of the few flags in which settings differ; '' where there are none or many."""
    settings = [_setting(other) for other in others]
    own = _setting(run)
    names = dict.fromkeys(name for setting in settings for name in setting)
    differing = [n for n in names if any(one.get(n) != settings[0].get(n) for one in settings)]
    if not own or not 0 < len(differing) <= _MOST_NAMED:
        return ""
    return ", ".join(
        str(own.get(name)) if name in _SAY_THEMSELVES else f"{name}={own.get(name)}"
        for name in differing
    )


def _common(group: Sequence[Run], names: Mapping[Any, str]) -> str:
    """The folder that a group's runs share, or the first one's name."""
    paths = [names[run.table.path] for run in group]
    shared = os.path.commonpath(paths) if len(paths) > 1 else paths[0]
    return shared or paths[0]
