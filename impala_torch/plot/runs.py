"""Runs on disk: which ones are meant, their tables, flags and names."""

import dataclasses
import glob
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from impala_torch.flags.errors import UserError
from impala_torch.plot import tables
from impala_torch.plot.columns import Column, column
from impala_torch.plot.tables import IMPALA_TORCH, MOOLIB, Table

_DESCRIPTION = {
    IMPALA_TORCH: ("config.json", "flags"),
    tables.TORCHBEAST: ("meta.json", "args"),
    MOOLIB: ("meta.json", "flags"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder tells it."""

    table: Table
    settings: Mapping[str, Any]  # its flags by name; empty where they are not known
    results: Mapping[str, Any]  # results.json of one of ours; empty while it is missing
    notes: tuple[str, ...]  # what could not be read

    @property
    def program(self) -> str:
        return self.table.program

    @property
    def folder(self) -> pathlib.Path:
        return self.table.path.parent

    @property
    def level(self) -> str | None:
        """The game, as the program names it; None where it is not known."""
        env = self.settings.get("env", self.settings.get("env.name"))
        level = self.settings.get("level_name", env)
        return level if isinstance(level, str) else None

    def column(self, name: str, repeats: int = 0) -> Column:
        """What ``columns.column`` says, with the frames a step of the run's own description."""
        own = self.settings.get("env.num_action_repeats") if self.program == MOOLIB else 0
        return column(self.table, name, repeats or (own if isinstance(own, int) else 0))


def find(patterns: Sequence[str]) -> list[pathlib.Path]:
    """The tables that the user means, each once, in the order of the patterns.

    Args:
      patterns: files, folders (with all runs below them), or wildcards of both.

    Raises:
      UserError: there is nothing where a pattern points.
    """
    found: dict[str, pathlib.Path] = {}
    for pattern in patterns:
        paths = list(_matching(pattern))
        if not paths:
            names = ", ".join(tables.FILE_NAMES)
            raise UserError(f"'{pattern}' is no run: no {names} there, nor in a folder below it")
        for path in paths:
            real = os.path.realpath(path)
            # Of a run and a link to it (logs/latest), the run has the name that says more.
            if real not in found or os.path.abspath(path) == real:
                found[real] = path
    return list(found.values())


def load(path: pathlib.Path) -> Run:
    """Reads a run from its table's path.

    Raises:
      UserError: the table cannot be read.
    """
    table = tables.read(path)
    notes: list[str] = []
    name, key = _DESCRIPTION[table.program]
    settings = _json(path.with_name(name), notes).get(key, {})
    ours = table.program == IMPALA_TORCH
    results = _json(path.with_name("results.json"), notes) if ours else {}
    if table.damaged:
        notes.append(f"{path}: {table.damaged} damaged line(s) left out")
    return Run(table, _flat(settings), results, tuple(notes))


def short_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder below the one that they share."""
    folders = [os.path.abspath(run.folder) for run in runs]
    shared = os.path.commonpath(folders)
    if shared in folders:  # one run, or one above another
        shared = os.path.dirname(os.path.dirname(shared))
    names = [os.path.relpath(folder, shared) for folder in folders]
    twice = len(set(names)) < len(names)
    return [
        f"{name}/{run.table.path.name}" if twice else name
        for name, run in zip(names, runs, strict=True)
    ]


def _matching(pattern: str) -> Iterator[pathlib.Path]:
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        yield pathlib.Path(pattern)
        return
    wild = not os.path.isdir(pattern)
    for match in sorted(glob.glob(pattern, recursive=True)) if wild else [pattern]:
        path = pathlib.Path(match)
        # 'logs/run/*' also means config.json, but 'old-*.tsv' is a choice of files.
        if path.is_file() and (path.name in tables.FILE_NAMES or pattern.endswith(path.suffix)):
            yield path
        elif path.is_dir():
            for folder, folders, files in os.walk(path):
                folders.sort()
                for name in sorted(tables.FILE_NAMES.keys() & set(files)):
                    yield pathlib.Path(folder) / name


def _json(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    """The object of a file; nothing, and a note, if it is damaged; nothing if it is missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read, so nothing is known from it: {error}")
        return {}
    return value if isinstance(value, dict) else {}


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    if not isinstance(settings, dict):
        return {}
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
