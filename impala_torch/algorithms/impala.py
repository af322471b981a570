"""The IMPALA loss: policy gradient, baseline and entropy terms, summed over T and B.

Summed, not averaged, as in the paper's code: the published learning rates mean that.
"""

import torch
import torch.nn.functional as F

from impala_torch import vtrace
from impala_torch.flags.config import Config
from impala_torch.structures import AgentOutput, Unroll

REDUCTION = "sum"  # over a batch, and so over the batches of several learners


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


def clip_rewards(rewards: torch.Tensor, kind: str) -> torch.Tensor:
    """Rewards as the learner sees them.

    Args:
      rewards: of any shape.
      kind: "abs_one" clips to [-1, 1]; "soft_asymmetric" is 5 tanh(r / 5) with negatives times
        0.3 (the paper's DMLab-30 experiments); "none".
    """
    if kind == "abs_one":
        return rewards.clamp(-1, 1)
    if kind == "soft_asymmetric":
        squeezed = torch.tanh(rewards / 5)
        return torch.where(rewards < 0, 0.3 * squeezed, squeezed) * 5
    if kind == "none":
        return rewards
    raise ValueError(f"'{kind}' is no way to clip rewards")


def add_metrics(
    total: dict[str, torch.Tensor], more: dict[str, torch.Tensor], count: int
) -> dict[str, torch.Tensor]:
    """``impala_loss``'s metrics over several batches: losses are added up, the rest averaged.

    Args:
      total: of the ``count`` - 1 batches before.
      more: of one batch.
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
    discounts = (~batch.done[1:]).float() * config.discounting
    # Where a time limit cut the episode its value goes on, though the unroll does not show it.
    rewards = clip_rewards(batch.reward[1:], config.reward_clipping)
    rewards = rewards + config.discounting * batch.final_value[1:]

    targets = vtrace.from_logits(
        batch.policy_logits[:-1],
        logits,
        actions,
        discounts,
        rewards,
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
