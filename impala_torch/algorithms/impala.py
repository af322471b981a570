"""IMPALA (Espeholt et al. 2018): policy gradient, baseline and entropy terms over V-trace targets.

Losses are summed over T and B, not averaged, as in the paper's code: the published learning rates
mean that.
"""

import torch
import torch.nn.functional as F

from impala_torch import vtrace
from impala_torch.algorithms.base import Algorithm, Metrics, Part
from impala_torch.algorithms.rewards import discounts_of, rewards_of
from impala_torch.flags.config import Config
from impala_torch.structures import AgentOutput, Unroll


class Impala(Algorithm):
    """The paper's: each update has targets of the weights that it starts from."""

    reduction = "sum"
    optimizer = "rmsprop"

    def loss(self, part: Part, entropy_cost: float) -> tuple[torch.Tensor, Metrics]:
        """``impala_loss`` of the part."""
        outputs = self.forward(part.unroll, None)
        return impala_loss(outputs, part.unroll, self.config, entropy_cost)


def policy_gradient_loss(
    policy_logits: torch.Tensor, actions: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """-sum of log pi(a|x) times advantage; the gradient flows through pi only.

    Args: policy_logits [T, B, A], actions [T, B] int64, advantages [T, B]. Returns [] float32.
    """
    return -(vtrace.action_log_probs(policy_logits, actions) * advantages.detach()).sum()


def baseline_loss(advantages: torch.Tensor) -> torch.Tensor:
    """Half the sum of squares of ``advantages`` = vs - V, [T, B]. Returns []."""
    return 0.5 * advantages.square().sum()


def entropy_loss(policy_logits: torch.Tensor) -> torch.Tensor:
    """Sum of pi log pi, the negative entropy, over ``policy_logits`` [T, B, A]. Returns []."""
    log_probs = F.log_softmax(policy_logits.float(), dim=-1)
    return (log_probs.exp() * log_probs).sum()


def impala_loss(
    learner_outputs: AgentOutput,
    batch: Unroll[torch.Tensor],
    config: Config,
    entropy_cost: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, rows paired by the convention of ``structures``.

    Args:
      learner_outputs: of the learner's forward over all rows, [T + 1, B, ...].
      batch: tensors, [T + 1, B, ...].
      config: discounting, reward clipping and the terms' weights.
      entropy_cost: the entropy term's weight at this update; None = ``config``'s.

    Returns:
      The total, [] float32, and metrics: detached [] tensors by name.
    """
    logits = learner_outputs.policy_logits[:-1].float()
    values = learner_outputs.baseline[:-1].float()
    actions = batch.action[:-1]

    targets = vtrace.from_logits(
        batch.policy_logits[:-1],
        logits,
        actions,
        discounts_of(batch, config),
        rewards_of(batch, config),
        values,
        learner_outputs.baseline[-1],
        lambda_=config.vtrace_lambda,
    )
    pg_loss = policy_gradient_loss(logits, actions, targets.pg_advantages)
    value_loss = config.baseline_cost * baseline_loss(targets.vs - values)
    negative_entropy = entropy_loss(logits)
    entropy_cost = config.entropy_cost if entropy_cost is None else entropy_cost
    weighted_entropy = entropy_cost * negative_entropy
    total = pg_loss + value_loss + weighted_entropy
    metrics = {
        "total_loss": total,
        "pg_loss": pg_loss,
        "baseline_loss": value_loss,
        "entropy_loss": weighted_entropy,
        "entropy": -negative_entropy / actions.numel(),
        "mean_rho": targets.log_rhos.exp().clamp(max=1).mean(),
        "baseline_mean": values.mean(),
    }
    return total, {name: value.detach() for name, value in metrics.items()}
