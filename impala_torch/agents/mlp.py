"""Agents for vector observations, without and with LSTM."""

import torch
from torch import nn

from impala_torch.agents.base import Agent
from impala_torch.structures import EnvironmentSpec


class MLPAgent(Agent):
    """Two layers of 128 tanh units."""

    image = False

    def __init__(self, spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(spec, dtype)
        self.torso = nn.Sequential(
            nn.Linear(spec.observation.shape[0], 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh()
        )
        self.add_heads(128)


class MLPLSTMAgent(MLPAgent):
    """The same with an LSTM of 256 units."""

    recurrent = True
