"""SimpleConvNetAgent: the convolutions of DQN (Mnih et al. 2015), about 1.7 M weights."""

import torch
from torch import nn

from impala_torch.agents.base import Agent, Flat, PixelConv2d, image_shape, init_orthogonal
from impala_torch.structures import EnvironmentSpec


class SimpleConvNetAgent(Agent):
    """Convolutions 32 of 8x8/4, 64 of 4x4/2, 64 of 3x3/1, then 512 units."""

    def __init__(self, spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(spec, dtype)
        shape = image_shape(spec)
        convolutions = Flat(
            [
                PixelConv2d(shape[0], 32, 8, stride=4),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 64, 4, stride=2),
                nn.ReLU(inplace=True),
                nn.Conv2d(64, 64, 3, stride=1),
                nn.ReLU(inplace=True),
            ],
            shape,
        )
        self.torso = nn.Sequential(
            convolutions, nn.Linear(convolutions.size, 512), nn.ReLU(inplace=True)
        )
        init_orthogonal(self.torso)
        self.add_heads(512)
