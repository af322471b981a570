"""What the learner's loop knows of an algorithm: the seam between learning and what is learned.

For each batch the learner asks for its ``parts`` and makes an update with the ``loss`` of each.
Everything else is the algorithm's own affair. A new one is a file beside this one, its class in
``algorithms.ALGORITHMS`` and its defaults in ``flags.presets.ALGORITHMS``.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from impala_torch.agents import Agent
from impala_torch.flags.config import Config
from impala_torch.structures import AgentOutput, Unroll, columns_of

# The agent's outputs [T + 1, B, ...] over an unroll; of another network of its kind where given.
Forward = Callable[[Unroll[torch.Tensor], nn.Module | None], AgentOutput]
Metrics = dict[str, torch.Tensor]


class Ranks(Protocol):
    """The learners of a run, as ``learning.group.Group`` is."""

    rank: int
    size: int

    def average(self, tensor: torch.Tensor) -> None:
        """Overwrites a tensor with the average of all ranks'; all call it at the same points."""


class Part(NamedTuple):
    """What one update is made with: b of a batch's B unrolls."""

    unroll: Unroll[torch.Tensor]  # [T + 1, b, ...]
    targets: Mapping[str, torch.Tensor]  # [T, b] each, without gradient: what ``targets`` gave


class Algorithm:
    """What is learned from a batch: an update rule and what it keeps beside the agent.

    One learner of n x B unrolls and n learners of B make the same updates: whatever is estimated
    from a batch (a mean, a scale) is estimated over all ranks, by ``ranks.average``.
    """

    reduction: ClassVar[str]  # "sum" where ``loss`` is a sum over T and B, "average" where a mean
    optimizer: ClassVar[str]  # a name of ``learning.optimizers``

    def __init__(self, config: Config, agent: Agent, forward: Forward, ranks: Ranks) -> None:
        """
        Args:
          config: the flags.
          agent: what is trained.
          forward: runs it over an unroll.
          ranks: the learners, in step.
        """
        self.config, self.agent, self.forward, self.ranks = config, agent, forward, ranks

    # --- what a batch is used for ---

    def targets(self, unroll: Unroll[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What is computed once, from a whole batch: tensors [T, B] by name, without gradient."""
        return {}

    def loss(self, part: Part, entropy_cost: float) -> tuple[torch.Tensor, Metrics]:
        """What an update minimises.

        Returns:
          The loss, [] float32, and metrics, detached [] tensors by name. Of those whose name ends
          in ``_loss`` the sum over ranks is told where ``reduction`` is, else the mean.
        """
        raise NotImplementedError

    def parts(self, unroll: Unroll[torch.Tensor], seed: int) -> Iterator[Part]:
        """The parts of a batch that the updates are made with, one after the other.

        --batch_reuse times the whole batch, each time dealt anew into --num_minibatches. (Dealt
        once, the same minibatches each time, Pong took twice as many frames.)

        Args:
          unroll: the batch, [T + 1, B, ...].
          seed: another one for each batch, the same on all ranks; that of the run counts too.
        """
        targets = self.targets(unroll)
        size, count = unroll.reward.shape[1], self.config.num_minibatches
        seeds = np.random.SeedSequence([self.config.seed, seed]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seeds[0]))
        for _ in range(self.config.batch_reuse):
            if count == 1:
                yield Part(unroll, targets)
                continue
            for chosen in self._deal(size, count, generator).to(unroll.reward.device):
                some = {name: value[:, chosen] for name, value in targets.items()}
                yield Part(columns_of(unroll, chosen), some)

    def _deal(self, size: int, count: int, generator: torch.Generator) -> torch.Tensor:
        """[count, size / count] int64: which of ``size`` unrolls each of ``count`` minibatches has.

        Of every ``count`` unrolls in a row each minibatch gets one, so that a rank's minibatches
        are its share of those that one learner would make of all ranks' batches.
        """
        rows = size // count
        dealt = torch.rand(rows * self.ranks.size, count, generator=generator).argsort(dim=1)
        mine = dealt[rows * self.ranks.rank :][:rows]
        return (torch.arange(0, size, count).unsqueeze(1) + mine).t()

    # --- what it does after steps ---

    learning_rate_scale = 1.0  # what the schedule's learning rate is multiplied with

    def stepped(self) -> None:
        """After each step of the optimizer."""

    def used(self, left: float) -> None:
        """After the last step with a batch.

        Args:
          left: of the learning rate's schedule: 1 at frame 0, 0 at the end.
        """

    def kept(self) -> dict[str, torch.Tensor]:
        """What it keeps beside the agent, by name: saved, broadcast, and restored in place."""
        return {}


def add_metrics(total: Metrics, more: Metrics, count: int) -> Metrics:
    """Metrics over several parts: losses are added up, as gradients are; the rest averaged.

    Args:
      total: of the ``count`` - 1 parts before.
      more: of one part.
      count: from 1; at 1 ``total`` is not looked at.
    """
    if count == 1:
        return more
    return {
        name: total[name] + value
        if name.endswith("_loss")
        else total[name] + (value - total[name]) / count
        for name, value in more.items()
    }
