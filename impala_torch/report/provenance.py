"""Under which rules, on what machine and with which versions numbers came about.

All of it is plain values, ready for JSON, and nothing of it is secret: neither the environment's
variables nor users or hosts.
"""

import hashlib
import os
import pathlib
import platform
from importlib import metadata
from typing import Any

import torch

from impala_torch import __version__, environments
from impala_torch.flags.config import Config

_PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless")


def code() -> str:
    """A short hash of this package's sources, the same wherever they are."""
    root = pathlib.Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def describe(config: Config, training: bool) -> dict[str, Any]:
    """The rules of play: numbers can be compared where they are the same.

    Args:
      config: the flags.
      training: of the games that a run trains on; else of those that an evaluation plays.

    Returns:
      ``level_name``; by the level's family ``sticky_actions`` (probability), ``noops``,
      ``life_loss_ends_episode``, ``action_set``, ``num_actions``, ``frame_skip``, ``max_frames``,
      ``frame_size`` (width x height), ``frame_stack``, ``preprocessing``, as far as they are rules
      there; ``reward_clipping`` of what the agent learns from ("none" in an evaluation; scores are
      never clipped); ``actions``: sampled or greedy.

    Raises:
      UserError: the level is unknown.
    """
    level = environments.level_of(config)
    if not training:  # whole games
        level = environments.limited(level._replace(episodic_life=False))
    return {
        "level_name": level.level_name,
        **environments.rules(level),
        "reward_clipping": config.reward_clipping if training else "none",
        "actions": "greedy" if config.greedy and not training else "sampled",
    }


def hardware() -> dict[str, Any]:
    """This machine: ``processor``, ``cores`` (for this process), ``memory_gib``, ``gpus``."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
    }


def versions() -> dict[str, str]:
    """Versions of this program, of Python, and of what plays and computes, by name."""
    known = {"impala_torch": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = "not installed"
    return known


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
