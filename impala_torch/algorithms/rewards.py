"""Rewards as learners see them."""

import torch

from impala_torch.flags.config import Config
from impala_torch.structures import Unroll


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


def rewards_of(unroll: Unroll[torch.Tensor], config: Config) -> torch.Tensor:
    """What the actions of an unroll led to, clipped, [T, B].

    Where a time limit cut the episode its value goes on, though the unroll does not show it.
    """
    rewards = clip_rewards(unroll.reward[1:], config.reward_clipping)
    return rewards + config.discounting * unroll.final_value[1:]


def discounts_of(unroll: Unroll[torch.Tensor], config: Config) -> torch.Tensor:
    """The discount of what comes after each action, 0 where it ended the episode, [T, B]."""
    return (~unroll.done[1:]).float() * config.discounting
