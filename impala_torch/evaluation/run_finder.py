"""Finds the runs below a directory, by their level."""

import json
import logging
import os
import pathlib

from impala_torch import environments
from impala_torch.environments import atari
from impala_torch.evaluation import atari_scores
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint

log = logging.getLogger(__name__)

ATARI57 = "atari57"
_MAX_DEPTH = 4  # folders below the given one


def find_runs(root: pathlib.Path, levels: str) -> tuple[dict[str, pathlib.Path], list[str]]:
    """The newest run of each level.

    Args:
      root: searched with the folders below it; links are not followed.
      levels: comma-separated levels, or atari57.

    Returns:
      The runs' directories by level, in the order asked for, and of atari57 the games (ALE's
      names) that no run is of.

    Raises:
      UserError: a level asked for by name has no run, or atari57 has none at all.
    """
    known = runs_below(root)
    if levels == ATARI57:
        return _atari57(root, known)
    asked = list(dict.fromkeys(name.strip() for name in levels.split(",") if name.strip()))
    missing = [name for name in asked if name not in known]
    if missing or not asked:
        there = ", ".join(sorted(known)) or "no run with a checkpoint"
        raise UserError(
            f"--levels: below --logdir={root} there is no run of {', '.join(missing) or 'any'}; "
            f"there is: {there}"
        )
    return {name: known[name] for name in asked}, []


def runs_below(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The newest run of every level, the one whose newest checkpoint was written last; the level
    whose run is newest comes last."""
    newest: dict[str, tuple[float, pathlib.Path]] = {}
    for folder, folders, files in os.walk(root):
        path = pathlib.Path(folder)
        if len(path.relative_to(root).parts) >= _MAX_DEPTH:
            folders.clear()
        written = [path / name for name in files if checkpoint.is_checkpoint(name)]
        if not written:
            continue
        level = _level_of(path)
        when = max(file.stat().st_mtime for file in written)
        if level and when >= newest.get(level, (0.0, path))[0]:
            newest[level] = (when, path)
    return {level: path for level, (_, path) in sorted(newest.items(), key=lambda one: one[1][0])}


def _level_of(folder: pathlib.Path) -> str:
    """The level that a run was started with; empty, with a warning, where that is not told."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text())["flags"]["level_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is passed over: its config.json does not tell its level (%s)", path, error)
        return ""


def _atari57(
    root: pathlib.Path, known: dict[str, pathlib.Path]
) -> tuple[dict[str, pathlib.Path], list[str]]:
    # Of a game with runs in both families the newer one.
    levels = {atari.rom_of(level): level for level in known if environments.is_atari(level)}
    found = {levels[game]: known[levels[game]] for game in atari_scores.GAMES if game in levels}
    if not found:
        raise UserError(f"--levels=atari57: below --logdir={root} there is no run of any of them")
    return found, [game for game in atari_scores.GAMES if game not in levels]
