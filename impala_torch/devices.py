"""Which device a learner computes on."""

import torch

from impala_torch.config import UserError


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
