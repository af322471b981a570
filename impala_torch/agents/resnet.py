"""The deep network of the IMPALA paper (figure 3, right), without and with LSTM."""

import torch
import torch.nn.functional as F
from torch import nn

from impala_torch.agents.base import Agent, Flat, PixelConv2d, image_shape
from impala_torch.structures import EnvironmentSpec


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class ResNetAgent(Agent):
    """Three sections of 16, 32, 32 channels: convolution, pool to half, two residual blocks."""

    def __init__(self, spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(spec, dtype)
        shape = image_shape(spec)
        layers: list[nn.Module] = []
        channels = shape[0]
        for width in (16, 32, 32):
            convolution = nn.Conv2d if layers else PixelConv2d
            layers += [
                convolution(channels, width, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                ResidualBlock(width),
                ResidualBlock(width),
            ]
            channels = width
        sections = Flat([*layers, nn.ReLU(inplace=True)], shape)
        self.torso = nn.Sequential(sections, nn.Linear(sections.size, 256), nn.ReLU(inplace=True))
        self.add_heads(256)


class ResNetLSTMAgent(ResNetAgent):
    """The same with an LSTM of 256 units."""

    recurrent = True
