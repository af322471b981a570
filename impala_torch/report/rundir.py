"""The directory of a run: where it is, that it can be written to, and what it says of itself."""

import json
import logging
import os
import pathlib
import socket
import subprocess

from impala_torch.flags.config import Config, default_logdir, to_dict
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.report import provenance, wandb_log

_GIT_SECS = 20.0  # that git may take to say what the program is


def prepare(config: Config) -> pathlib.Path:
    """Makes the run's directory, with ``config.json``; ``logs/latest`` points to it if it is one
    of ``logs``.

    Raises:
      UserError: it cannot be made or written to, or --with_wandb cannot be had.
    """
    wandb_log.check(config)
    logdir = pathlib.Path(config.logdir or default_logdir(config.level_name)).absolute()
    description = {
        "flags": dict(to_dict(config)),
        "versions": provenance.versions(),
        "git_commit": _git_commit(),
        "host": socket.gethostname(),
        "hardware": provenance.hardware(),
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


def _git_commit() -> str:
    """Of this program's checkout, with a + where files were changed; empty if it is none."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]

    def ask(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([*git, *words], capture_output=True, text=True, timeout=_GIT_SECS)

    try:
        commit, changed = ask("rev-parse", "HEAD"), ask("status", "--porcelain")
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    if commit.returncode:
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


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
