"""The directory of a run: where it is, that it can be written to, and what it says of itself."""

import json
import logging
import os
import pathlib
import sys

import torch

from impala_torch import __version__, checkpoint
from impala_torch.config import Config, UserError, default_logdir, to_dict


def prepare(config: Config) -> pathlib.Path:
    """Makes the run's directory, with ``config.json``; ``logs/latest`` points to it if it is one
    of ``logs``.

    Raises:
      UserError: it cannot be made or written to.
    """
    logdir = pathlib.Path(config.logdir or default_logdir(config.level_name)).absolute()
    description = {
        "flags": dict(to_dict(config)),
        "impala_torch": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    try:
        (logdir / "workers").mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(
            logdir / "config.json", json.dumps(description, indent=2).encode()
        )
        if logdir.parent.parent.name == "logs":
            _point_latest(logdir)
    except OSError as error:
        raise UserError(f"--logdir={logdir} cannot be written to: {error.strerror}") from error
    return logdir


def log_to(path: pathlib.Path) -> None:
    """Sends this process's log to ``path`` too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    root = logging.getLogger()
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


def _point_latest(logdir: pathlib.Path) -> None:
    latest = logdir.parent.parent / "latest"
    temporary = latest.with_name(f".latest.{os.getpid()}")
    temporary.symlink_to(logdir.relative_to(latest.parent))
    os.replace(temporary, latest)
