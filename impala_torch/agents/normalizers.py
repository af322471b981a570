"""What agents know of the scale of what they see and expect: running statistics, kept as buffers.

They travel with the weights, and so are the same in learning, acting and evaluation; only the
learner changes them (``follow``), from the batches of all ranks.
"""

from collections.abc import Callable

import torch
from torch import nn

# A batch's share in the running statistics is 1 / n, as in a mean of all, and never less than this.
_LEAST_RATE = 1e-3
_LARGEST = 10.0  # deviations that a number may stand out
_LEAST_DEVIATION = 1e-3  # of values: what is always the same is not to be blown up
# Overwrites a tensor with the average of all ranks'.
Average = Callable[[torch.Tensor], None]
# What stands out further than so many deviations counts as if it did not, once they are known: one
# number must not make all others look alike for a thousand batches.
_OUTLIER, _KNOWN_AFTER = 100.0, 10
_ROWS = 8  # of an unroll's frames that the mean picture is of: neighbours are alike


class _Running(nn.Module):
    """A running mean; how many batches it is of."""

    mean: torch.Tensor
    batches: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("batches", torch.zeros(()))

    def _begin(self, batch: torch.Tensor, average: Average) -> torch.Tensor:
        """Counts a batch [n, *shape]; its share in the statistics, [].

        The mean of the first is where they start: moments are taken about the mean so far, since
        about 0 those of numbers far from it have no digits left.
        """
        if not self.batches:
            start = batch.mean(dim=0)
            average(start)
            self.mean.copy_(start.nan_to_num(0.0, 0.0, 0.0))
        self.batches += 1
        return (1 / self.batches).clamp(min=_LEAST_RATE)


class MeanPicture(_Running):
    """The mean picture of the frames, [H, W] where they are stacked, or [C, H, W]."""

    @torch.no_grad()
    def follow(self, observation: torch.Tensor, average: Average) -> None:
        """Takes in an unroll's frames, [rows, B, *shape] uint8, of all ranks."""
        some = observation[:: max(1, len(observation) // _ROWS)].flatten(0, 1).float()
        rate = self._begin(some, average)
        apart = some.mean(dim=0) - self.mean
        average(apart)
        self.mean += rate * apart


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
    def follow(self, observation: torch.Tensor, average: Average) -> None:
        """Takes in an unroll's vectors, [rows, B, D], of all ranks."""
        vectors = observation.flatten(0, -2)
        rate = self._begin(vectors, average)
        _move(self.mean, self.variance, vectors, rate, average, self.batches)


class ValueScale(_Running):
    """Mean and deviation of the value targets: a head that learns numbers near one.

    When they move, the head is set so that its values stay (PopArt: van Hasselt et al. 2016).
    """

    deviation: torch.Tensor
    variance: torch.Tensor

    def __init__(self) -> None:
        super().__init__((1,))
        self.register_buffer("variance", torch.ones(1))
        self.register_buffer("deviation", torch.ones(1))

    def forward(self, baseline: torch.Tensor) -> torch.Tensor:
        """The head's output [...] as a value [...]."""
        return baseline * self.deviation + self.mean

    @torch.no_grad()
    def follow(self, targets: torch.Tensor, average: Average, head: nn.Linear) -> None:
        """Takes in value targets, [T, B], of all ranks; ``head`` gives the values it gave."""
        old_mean, old_deviation = self.mean.clone(), self.deviation.clone()
        values = targets.reshape(-1, 1)
        rate = self._begin(values, average)
        _move(self.mean, self.variance, values, rate, average, self.batches)
        self.deviation.copy_(self.variance.clamp(min=0).sqrt().clamp(min=_LEAST_DEVIATION))
        head.weight.mul_(old_deviation / self.deviation)
        head.bias.mul_(old_deviation).add_(old_mean - self.mean).div_(self.deviation)


def _move(
    mean: torch.Tensor,
    variance: torch.Tensor,
    batch: torch.Tensor,
    rate: torch.Tensor,
    average: Average,
    batches: torch.Tensor,
) -> None:
    """Moves a running mean and variance [D], of so many ``batches``, towards those of a batch
    [n, D] of all ranks."""
    furthest = _OUTLIER * variance.clamp(min=_LEAST_DEVIATION**2).sqrt()
    furthest = torch.where(batches > _KNOWN_AFTER, furthest, torch.inf)
    apart = (batch - mean).clamp(-furthest, furthest)
    moments = torch.stack([apart.mean(dim=0), apart.square().mean(dim=0)])
    average(moments)
    # What is not finite would stay so for ever: such a batch is one that nothing is learned from.
    known = moments.isfinite().all()
    rate = torch.where(known, rate, 0.0)
    first, second = torch.where(known, moments, 0.0)
    mean += rate * first
    variance.mul_(1 - rate).add_(rate * second).sub_((rate * first).square())
