"""What all agents of the zoo have in common: torso, last reward and action, core, heads."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from impala_torch.agents.normalizers import MeanPicture, ValueScale, VectorNormalizer
from impala_torch.structures import AgentInput, AgentOutput, EnvironmentSpec

LSTM_SIZE = 256
# What a pixel may differ from the mean picture, where that is subtracted: a third of the range is
# one, as a usual deviation would be.
_DEVIATIONS = 3


class Agent(nn.Module):
    """An actor-critic over T' rows of B environments.

    A subclass sets ``torso`` (observation [N, ...] -> features [N, D]) and calls ``add_heads``.
    The clipped last reward and the one-hot last action are appended to the features, as in the
    original; then come the LSTM, if any, and the heads.
    """

    torso: nn.Module
    recurrent = False
    image = True  # whether the observation must be an image, or else a vector
    picture: MeanPicture | None
    vector_normalizer: VectorNormalizer | None
    value_scale: ValueScale | None

    def __init__(self, spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
          spec: of the level.
          dtype: float32, or bfloat16 for the torso's arithmetic; weights are float32 always.
        """
        super().__init__()
        self.num_actions = spec.num_actions
        self.dtype = dtype
        self.picture = self.vector_normalizer = self.value_scale = None
        self._acts_only = dtype == torch.float32

    def for_acting(self) -> "Agent":
        """Makes this an agent that is never trained: the torso's weights are cast once."""
        if self.image and hasattr(self, "torso"):  # a forward of one's own may do without
            self.torso.to(self.dtype)
            self._acts_only = True
        return self.requires_grad_(False)

    def normalize_observations(self, spec: EnvironmentSpec) -> None:
        """Makes this an agent that sees what differs from the usual, by statistics of its own.

        Raises:
          ValueError: it has a forward of its own, or sees images without a ``PixelConv2d``.
        """
        self._check_forward("observations")
        if not self.image:
            self.vector_normalizer = VectorNormalizer(spec.observation.shape[0])
            return
        first = [module for module in self.modules() if isinstance(module, PixelConv2d)]
        if len(first) != 1:
            raise ValueError(f"its torso has {len(first)} PixelConv2d instead of one, its first")
        first[0].scale = _DEVIATIONS / 255
        self.picture = MeanPicture(spec.observation.shape)

    def normalize_values(self) -> None:
        """Makes this an agent whose baseline's head learns numbers of mean 0 and deviation 1.

        Raises:
          ValueError: it has a forward, or a baseline's head, of its own.
        """
        self._check_forward("values")
        if not isinstance(self.baseline, nn.Linear):
            raise ValueError(f"its baseline is a {type(self.baseline).__name__} and no Linear")
        self.value_scale = ValueScale()

    @property
    def _own_forward(self) -> bool:
        return type(self).forward is not Agent.forward

    def _check_forward(self, what: str) -> None:
        if self._own_forward:
            raise ValueError(f"its forward is its own, and so must be how it normalizes {what}")

    @property
    def normalizer(self) -> MeanPicture | VectorNormalizer | None:
        """The statistics of what it sees, for the learner to keep; None without any."""
        return self.picture if self.image else self.vector_normalizer

    def add_heads(self, features: int) -> None:
        """Makes what follows a torso of ``features`` features: LSTM, policy and baseline."""
        size = features + 1 + self.num_actions
        self.core = nn.LSTMCell(size, LSTM_SIZE) if self.recurrent else None
        size = LSTM_SIZE if self.recurrent else size
        self.policy = nn.Linear(size, self.num_actions)
        self.baseline = nn.Linear(size, 1)
        # Nearly uniform at first: exploration before the baseline has learned anything.
        nn.init.orthogonal_(self.policy.weight, 0.01)
        nn.init.zeros_(self.policy.bias)
        nn.init.zeros_(self.baseline.bias)

    @property
    def state_size(self) -> int:
        """S: the LSTM's h and c side by side; 0 without one."""
        return 2 * LSTM_SIZE if self.recurrent else 0

    def initial_state(self, batch_size: int) -> torch.Tensor:
        """[B, S] zeros: the state at an episode's start."""
        return torch.zeros(batch_size, self.state_size)

    def forward(self, inputs: AgentInput, state: torch.Tensor) -> tuple[AgentOutput, torch.Tensor]:
        """Args: inputs [T', B, ...], state [B, S] before the first row.

        Returns:
          Outputs [T', B, ...], float32, and the state [B, S] after the last row. The state is
          reset where ``done`` is true, before that row.
        """
        rows, batch = inputs.reward.shape
        features = self._features(inputs.observation.flatten(0, 1))
        core_input = torch.cat(
            [
                features,
                inputs.reward.clamp(-1, 1).reshape(-1, 1),
                F.one_hot(inputs.last_action.reshape(-1), self.num_actions).float(),
            ],
            dim=1,
        )
        if self.core is not None:
            core_output, state = self._unroll(
                core_input.unflatten(0, (rows, batch)), inputs.done, state
            )
            core_input = core_output.flatten(0, 1)
        logits = self.policy(core_input).unflatten(0, (rows, batch))
        baseline = self.baseline(core_input).view(rows, batch)
        if self.value_scale is not None:
            baseline = self.value_scale(baseline)
        return AgentOutput(logits, baseline), state

    def _features(self, observation: torch.Tensor) -> torch.Tensor:
        """[N, ...] as the environment gives it -> [N, D] float32."""
        if not self.image:
            if self.vector_normalizer is not None:
                observation = self.vector_normalizer(observation)
            return self.torso(observation)
        observation = self._pixels(observation)
        # Autocast keeps the weights in float32 for the optimizer, and casts them at each call.
        with torch.autocast(observation.device.type, self.dtype, enabled=not self._acts_only):
            return self.torso(observation).float()

    def prepared(self, observation: torch.Tensor) -> torch.Tensor:
        """Observations [T', B, ...] as the torso takes them: ``forward`` takes these too.

        For what is seen several times with the same statistics: passes over pixels cost as much
        as convolutions.
        """
        if not self.image or type(self)._features is not Agent._features or self._own_forward:
            return observation
        return self._pixels(observation.flatten(0, 1)).unflatten(0, observation.shape[:2])

    def _pixels(self, observation: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] uint8, or what this gave -> in ``dtype``, less the mean picture."""
        if observation.is_floating_point():
            return observation
        pixels = observation.contiguous(memory_format=torch.channels_last).to(self.dtype)
        if self.picture is not None:
            # Not conv(x) - conv(m), though that is cheaper: its gradient is the difference of two
            # large ones, and in bfloat16 wrong by 7%.
            mean = self.picture.mean.to(self.dtype).expand(1, *pixels.shape[1:])
            # In the order of the pixels' memory: else this takes ten times as long.
            pixels -= mean.contiguous(memory_format=torch.channels_last)
        return pixels

    def _unroll(
        self, core_input: torch.Tensor, done: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.core is not None
        core = self.core
        hidden, cell = state.chunk(2, dim=1)
        keeps = (~done).float().unsqueeze(2)
        if len(core_input) == 1:
            hidden, cell = core(core_input[0], (hidden * keeps[0], cell * keeps[0]))
            return hidden.unsqueeze(0), torch.cat([hidden, cell], dim=1)
        # The inputs' share of the gates does not wait for the rows before: one product for all.
        # That is 1.6 times as fast as the cell row by row, and than segments between episode ends.
        from_input = F.linear(core_input, core.weight_ih, core.bias_ih + core.bias_hh)
        outputs = []
        for row, keep in zip(from_input.unbind(), keeps.unbind(), strict=True):
            gates = torch.addmm(row, hidden * keep, core.weight_hh.t())
            take, forget, new, out = gates.chunk(4, dim=1)
            cell = forget.sigmoid() * (cell * keep) + take.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs), torch.cat([hidden, cell], dim=1)


class PixelConv2d(nn.Conv2d):
    """A network's first convolution: takes pixels of 0 to 255 as if they were scaled to 1.

    The scale goes to the weights: a pass over the pixels costs as much as the convolution.
    """

    scale = 1 / 255

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(pixels, self.weight * self.scale, self.bias)


def init_orthogonal(torso: nn.Module) -> None:
    """Orthogonal weights that keep a ReLU's input as large as its output, and no bias.

    PyTorch's own initial weights shrink features layer by layer, to a fraction of the last reward
    and action that stand beside them. (A2C's and PPO's usual start; residual sums keep PyTorch's.)
    """
    for module in torso.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight, 2**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Flat(nn.Module):
    """Layers, then the features flattened; ``size`` is found by a try."""

    def __init__(self, layers: Iterable[nn.Module], shape: tuple[int, ...]) -> None:
        super().__init__()
        # Pixels are channels_last; weights are not, since Horovod takes contiguous tensors only.
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            self.size = self.layers(torch.zeros(1, *shape)).numel()

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layers(observation).flatten(1)


def image_shape(spec: EnvironmentSpec) -> tuple[int, int, int]:
    """(channels, height, width) of what the torso sees: the stack's frames are channels."""
    shape = spec.observation.shape
    if len(shape) == 2:
        return (spec.observation.stack, *shape)
    channels, height, width = shape
    return channels, height, width
