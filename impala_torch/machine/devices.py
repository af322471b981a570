"""Which device a learner computes on."""

import importlib.util
import os
import shutil

import torch

from impala_torch.flags.errors import UserError


def choose(flag: str, local_rank: int) -> torch.device:
    """The device of --device for a rank of this host.

    Args:
      flag: "cpu", "cuda", "cuda:N", or "auto": a GPU where there is one, and of several the one
        of the local rank.
      local_rank: number of this learner among those of its host.

    Raises:
      UserError: the flag names no device, or one that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if flag == "auto":
        return torch.device("cuda", local_rank % count) if count else torch.device("cpu")
    known = "cpu, cuda, cuda:N or auto"
    try:
        device = torch.device(flag)
    except RuntimeError as error:
        raise UserError(f"--device={flag} is not a device: {known}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device={flag} is not supported: {known}")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device={flag}: this machine has {count} GPU(s) for PyTorch")
    return device


def check_compiles(device: torch.device) -> None:
    """Raises UserError where torch.compile has nothing to compile with for a device."""
    if device.type == "cuda":
        there, what = importlib.util.find_spec("triton") is not None, "the package triton"
    else:
        there = any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))
        what = "a C++ compiler (apt-get install g++)"
    if not there:
        raise UserError(f"--compile needs {what} on the learner's host; or leave it out")
