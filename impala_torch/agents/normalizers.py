"""What agents know of the scale of what they see and expect: running statistics, kept as buffers.

They travel with the weights, and so are the same in learning, acting and evaluation; only the
learner changes them (``take_in``), from the batches of all ranks.
"""

import torch
from torch import nn

# A batch's share in the running statistics is 1 / n, as in a mean of all, and never less than this.
_LEAST_RATE = 1e-3
_LARGEST = 10.0  # deviations that a number may stand out
_LEAST_DEVIATION = 1e-3  # of values: what is always the same is not to be blown up
_ROWS = 8  # of an unroll's frames that the mean picture is of: neighbours are alike


class _Running(nn.Module):
    """A running mean; how many batches it is of."""

    mean: torch.Tensor
    batches: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("batches", torch.zeros(()))

    def _rate(self) -> torch.Tensor:
        """Counts a batch; its share in the statistics, []."""
        self.batches += 1
        return (1 / self.batches).clamp(min=_LEAST_RATE)


class MeanPicture(_Running):
    """The mean picture of the frames, [H, W] where they are stacked, or [C, H, W]."""

    @torch.no_grad()
    def moments(self, observation: torch.Tensor) -> torch.Tensor:
        """What ``take_in`` wants of an unroll's frames [rows, B, *shape] uint8: [prod(shape)]."""
        some = observation[:: max(1, len(observation) // _ROWS)]
        return some.float().mean(dim=(0, 1)).flatten() - self.mean.flatten()

    @torch.no_grad()
    def take_in(self, moments: torch.Tensor) -> None:
        """Follows ``moments``, the mean of all ranks'."""
        self.mean += self._rate() * moments.view_as(self.mean)


class VectorNormalizer(_Running):
    """Vectors of mean 0 and deviation 1 in each number, cut at 10 deviations."""

    variance: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__((size,))
        self.register_buffer("variance", torch.ones(size))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N, D] float32."""
        deviation = self.variance.clamp(min=1e-8).sqrt()
        return ((observation - self.mean) / deviation).clamp(-_LARGEST, _LARGEST)

    @torch.no_grad()
    def moments(self, observation: torch.Tensor) -> torch.Tensor:
        """First and second moments about the mean so far of an unroll [rows, B, D]: [2 D]."""
        apart = observation.flatten(0, -2) - self.mean
        return torch.cat([apart.mean(dim=0), apart.square().mean(dim=0)])

    @torch.no_grad()
    def take_in(self, moments: torch.Tensor) -> None:
        """Follows ``moments``, the mean of all ranks'."""
        first, second = moments.chunk(2)
        rate = self._rate()
        self.mean += rate * first
        self.variance.mul_(1 - rate).add_(rate * second).sub_((rate * first).square())


class ValueScale(_Running):
    """Mean and deviation of the value targets: a head that learns numbers near one.

    When they move, the head is set so that its values stay (PopArt: van Hasselt et al. 2016).
    """

    deviation: torch.Tensor
    square: torch.Tensor

    def __init__(self) -> None:
        super().__init__((1,))
        self.register_buffer("square", torch.zeros(1))
        self.register_buffer("deviation", torch.ones(1))

    def forward(self, baseline: torch.Tensor) -> torch.Tensor:
        """The head's output [...] as a value [...]."""
        return baseline * self.deviation + self.mean

    @torch.no_grad()
    def moments(self, targets: torch.Tensor) -> torch.Tensor:
        """First and second moments of value targets [T, B]: [2]."""
        return torch.stack([targets.mean(), targets.square().mean()])

    @torch.no_grad()
    def take_in(self, moments: torch.Tensor, head: nn.Linear) -> None:
        """Follows ``moments``, the mean of all ranks'; ``head`` gives the same values as before."""
        rate = self._rate()
        old_mean, old_deviation = self.mean.clone(), self.deviation.clone()
        self.mean += rate * (moments[0] - self.mean)
        self.square += rate * (moments[1] - self.square)
        variance = (self.square - self.mean.square()).clamp(min=0)
        self.deviation.copy_(variance.sqrt().clamp(min=_LEAST_DEVIATION))
        head.weight.mul_(old_deviation / self.deviation)
        head.bias.mul_(old_deviation).add_(old_mean - self.mean).div_(self.deviation)
