"""An agent's weights as one flat buffer, as they travel from learner to actors."""

import numpy as np
import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # that weights travel as


def layout(module: nn.Module) -> list[list]:
    """[[name, shape], ...] in the order of the buffer."""
    return [[name, list(tensor.shape)] for name, tensor in _tensors(module)]


def pack(module: nn.Module, dtype: str) -> np.ndarray:
    """``flatten`` as the bytes that travel: [N x size of ``dtype``] uint8, little-endian."""
    return flatten(module).to(DTYPES[dtype]).view(torch.uint8).numpy()


def unpack(module: nn.Module, data: bytes | memoryview, dtype: str) -> None:
    """Loads what ``pack`` made. Raises as ``load_flat``, or KeyError for an unknown ``dtype``."""
    load_flat(module, torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]))


@torch.no_grad()
def flatten(module: nn.Module) -> torch.Tensor:
    """All weights, one after the other, as a new float32 tensor [N] on the CPU."""
    return torch.cat([tensor.reshape(-1).float() for _, tensor in _tensors(module)]).cpu()


@torch.no_grad()
def load_flat(module: nn.Module, flat: torch.Tensor) -> None:
    """Copies ``flatten``'s result into a module of the same layout, cast to its own types.

    Raises:
      ValueError: the sizes differ.
    """
    tensors = [tensor for _, tensor in _tensors(module)]
    sizes = [tensor.numel() for tensor in tensors]
    if sum(sizes) != flat.numel():
        raise ValueError(f"{flat.numel()} weights do not fill a network of {sum(sizes)}")
    parts = flat.split(sizes)
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(module.state_dict().items())
