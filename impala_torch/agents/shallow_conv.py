"""The shallow network of the IMPALA paper (figure 3, left), without and with LSTM."""

import torch
from torch import nn

from impala_torch.agents.base import Agent, Flat, PixelConv2d, image_shape, init_orthogonal
from impala_torch.structures import EnvironmentSpec


class ShallowConvNetAgent(Agent):
    """Convolutions 16 of 8x8/4, 32 of 4x4/2, then 256 units."""

    def __init__(self, spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(spec, dtype)
        shape = image_shape(spec)
        convolutions = Flat(
            [
                PixelConv2d(shape[0], 16, 8, stride=4),
                nn.ReLU(inplace=True),
                nn.Conv2d(16, 32, 4, stride=2),
                nn.ReLU(inplace=True),
            ],
            shape,
        )
        self.torso = nn.Sequential(
            convolutions, nn.Linear(convolutions.size, 256), nn.ReLU(inplace=True)
        )
        init_orthogonal(self.torso)
        self.add_heads(256)


class ShallowConvLSTMAgent(ShallowConvNetAgent):
    """The same with an LSTM of 256 units."""

    recurrent = True
