"""Checkpoints: written whole or not at all, and the newest valid one restored.

``checkpoint-<frames>.pt`` holds a dictionary of tensors and plain values (loaded with
``weights_only``); ``checkpoint.json`` lists the files that are kept, newest last, with their
SHA-256, so that a damaged one is noticed and the one before it taken.
"""

import hashlib
import io
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from impala_torch.flags.config import Config, having
from impala_torch.flags.errors import UserError
from impala_torch.learning.finite import all_finite

log = logging.getLogger(__name__)

INDEX = "checkpoint.json"
# See write_atomically.
_TEMPORARY = re.compile(r"\.((checkpoint-\d+\.pt)|(checkpoint|config|results)\.json)\.\d+")


def name_of(frames: int) -> str:
    """The file name of the checkpoint at ``frames`` environment frames."""
    return f"checkpoint-{frames}.pt"


def is_checkpoint(name: str) -> bool:
    """Whether a file of this name is a checkpoint."""
    return _frames_of(pathlib.Path(name)) >= 0 and name.endswith(".pt")


def save(logdir: pathlib.Path, frames: int, state: Mapping[str, Any], keep: int) -> pathlib.Path:
    """Writes a checkpoint and forgets all but the ``keep`` newest.

    Args:
      logdir: the run's directory.
      frames: environment frames trained for, which names the file.
      state: tensors and plain values.
      keep: how many checkpoints stay.

    Returns:
      The file.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getbuffer()
    path = logdir / name_of(frames)
    write_atomically(path, data)
    kept = [entry for entry in _index(logdir) if entry["file"] != path.name]
    kept.append({"file": path.name, "frames": frames, "sha256": hashlib.sha256(data).hexdigest()})
    removed, kept = kept[:-keep], kept[-keep:]
    content = {"newest": path.name, "checkpoints": kept}
    write_atomically(logdir / INDEX, json.dumps(content, indent=2).encode())
    for entry in removed:
        (logdir / entry["file"]).unlink(missing_ok=True)
    return path


def restore(logdir: pathlib.Path) -> dict[str, Any] | None:
    """The newest valid checkpoint's state, on the CPU; None if the run has none yet.

    Raises:
      UserError: there are checkpoints and all of them are damaged.
    """
    entries = _index(logdir)
    # A run that stopped between writing a checkpoint and its index still has the file.
    known = {entry["file"] for entry in entries}
    unlisted = [path for path in logdir.glob("checkpoint-*.pt") if path.name not in known]
    entries += [{"file": path.name, "frames": _frames_of(path)} for path in unlisted]
    entries.sort(key=lambda entry: entry["frames"])
    for entry in reversed(entries):
        path = logdir / entry["file"]
        try:
            return _load(path, entry.get("sha256"))
        except (OSError, ValueError) as error:
            log.warning("checkpoint %s is damaged and passed over: %s", path, error)
    if entries:
        raise UserError(
            f"none of the {len(entries)} checkpoint(s) in {logdir} can be read: move them away "
            "to start anew, or give another --logdir"
        )
    return None


def load(path: pathlib.Path) -> dict[str, Any]:
    """A given checkpoint's state, on the CPU.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    entries = _index(path.parent)
    known = {entry["file"]: entry.get("sha256") for entry in entries}
    try:
        return _load(path, known.get(path.name))
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--checkpoint={path} cannot be read: {words}") from error


def check_matches(state: Mapping[str, Any], config: Config, *also: str) -> None:
    """Raises UserError where a checkpoint is another agent's or another level's.

    Args:
      state: of the checkpoint.
      config: the flags.
      also: flags that must be the same too.
    """
    for flag in (*having(of_weights=True), *also):
        # A flag that was not there yet when it was trained.
        theirs = state["config"].get(flag, getattr(Config, flag))
        ours = getattr(config, flag)
        if theirs != ours:
            raise UserError(
                f"the checkpoint in --logdir was trained with --{flag}={theirs}, not {ours}: give "
                "that, or another --logdir"
            )


def write_atomically(path: pathlib.Path, data: bytes | memoryview) -> None:
    """Writes ``data`` so that ``path`` is at any moment the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def clear_unfinished(logdir: pathlib.Path) -> None:
    """Removes what a process left that was killed while it wrote atomically, as large as a
    checkpoint. For who alone writes to the directory."""
    for path in logdir.glob(".*.*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _load(path: pathlib.Path, sha256: str | None) -> dict[str, Any]:
    data = path.read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("its SHA-256 is not the one it was written with")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(state, dict) or not {"model", "config", "frames"} <= state.keys():
        raise ValueError("it does not hold what a checkpoint holds")
    if not all_finite(_tensors_in(state)):
        raise ValueError("its numbers are not all finite")
    return state


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors_in(part)


def _index(logdir: pathlib.Path) -> list[dict[str, Any]]:
    path = logdir / INDEX
    try:
        entries = json.loads(path.read_text())["checkpoints"]
        return [entry for entry in entries if (logdir / entry["file"]).exists()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged and passed over: %s", path, error)
        return []


def _frames_of(path: pathlib.Path) -> int:
    digits = path.stem.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1
