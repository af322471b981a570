"""V-trace targets (Espeholt et al. 2018, section 4.1).

Notation: T = unroll length, B = batch size, A = number of actions; time comes first. Names and
argument order are those of the field, so that other projects' tests run against this module.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class VTraceReturns(NamedTuple):
    """Targets, float32, without gradient."""

    vs: torch.Tensor  # [T, B], equation (1)
    pg_advantages: torch.Tensor  # [T, B], rho_t (r_t + gamma_t v_{t+1} - V(x_t)), section 4.2


class VTraceFromLogitsReturns(NamedTuple):
    """Targets, float32, without gradient, and what they were computed from."""

    vs: torch.Tensor  # [T, B]
    pg_advantages: torch.Tensor  # [T, B]
    log_rhos: torch.Tensor  # [T, B], log of target over behaviour probability
    behaviour_action_log_probs: torch.Tensor  # [T, B]
    target_action_log_probs: torch.Tensor  # [T, B]


def action_log_probs(policy_logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of ``actions`` [...] int64 under ``policy_logits`` [..., A]; [...]."""
    if policy_logits.shape[:-1] != actions.shape:
        raise ValueError(
            f"logits {tuple(policy_logits.shape)} do not fit actions {tuple(actions.shape)}"
        )
    log_probs = F.log_softmax(policy_logits.float(), dim=-1)
    return log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)


def from_logits(
    behaviour_policy_logits: torch.Tensor,
    target_policy_logits: torch.Tensor,
    actions: torch.Tensor,
    discounts: torch.Tensor,
    rewards: torch.Tensor,
    values: torch.Tensor,
    bootstrap_value: torch.Tensor,
    clip_rho_threshold: float | None = 1.0,
    clip_pg_rho_threshold: float | None = 1.0,
    lambda_: float = 1.0,
) -> VTraceFromLogitsReturns:
    """V-trace for softmax policies.

    Args:
      behaviour_policy_logits: [T, B, A], of the policy that acted.
      target_policy_logits: [T, B, A], of the policy being learned.
      actions: [T, B] int64, sampled from the behaviour policy.
      discounts: [T, B], gamma, 0 where the step ended the episode.
      rewards: [T, B], what each action led to.
      values: [T, B], the baseline at the states the actions were taken in.
      bootstrap_value: [B], the baseline at the state after the last action.
      clip_rho_threshold: rho-bar; None = no clipping.
      clip_pg_rho_threshold: the same for the policy gradient's weight.
      lambda_: lambda of remark 2.

    Raises:
      ValueError: shapes that do not fit.
    """
    if behaviour_policy_logits.shape != target_policy_logits.shape:
        raise ValueError(
            f"behaviour logits {tuple(behaviour_policy_logits.shape)} and target logits "
            f"{tuple(target_policy_logits.shape)} differ in shape"
        )
    with torch.no_grad():
        behaviour = action_log_probs(behaviour_policy_logits, actions)
        target = action_log_probs(target_policy_logits, actions)
        log_rhos = target - behaviour
        returns = from_importance_weights(
            log_rhos,
            discounts,
            rewards,
            values,
            bootstrap_value,
            clip_rho_threshold,
            clip_pg_rho_threshold,
            lambda_,
        )
    return VTraceFromLogitsReturns(returns.vs, returns.pg_advantages, log_rhos, behaviour, target)


@torch.no_grad()
def from_importance_weights(
    log_rhos: torch.Tensor,
    discounts: torch.Tensor,
    rewards: torch.Tensor,
    values: torch.Tensor,
    bootstrap_value: torch.Tensor,
    clip_rho_threshold: float | None = 1.0,
    clip_pg_rho_threshold: float | None = 1.0,
    lambda_: float = 1.0,
) -> VTraceReturns:
    """V-trace from importance weights, by the recursion of remark 1.

    Args: as in ``from_logits``, with log_rhos [T, B] = log(pi(a|x) / mu(a|x)); all may have more
      dimensions behind B.

    Raises:
      ValueError: shapes that do not fit.
    """
    shapes = {tuple(t.shape) for t in (log_rhos, discounts, rewards, values)}
    if len(shapes) != 1 or values.shape[1:] != bootstrap_value.shape:
        raise ValueError(
            f"log_rhos {tuple(log_rhos.shape)}, discounts {tuple(discounts.shape)}, rewards "
            f"{tuple(rewards.shape)}, values {tuple(values.shape)} and bootstrap_value "
            f"{tuple(bootstrap_value.shape)} do not fit: the last lacks only the time axis"
        )
    log_rhos, discounts, rewards = log_rhos.float(), discounts.float(), rewards.float()
    values, bootstrap_value = values.float(), bootstrap_value.float()
    rhos = log_rhos.exp()
    clipped_rhos = rhos if clip_rho_threshold is None else rhos.clamp(max=clip_rho_threshold)
    cs = lambda_ * rhos.clamp(max=1.0)
    next_values = torch.cat([values[1:], bootstrap_value.unsqueeze(0)])
    deltas = clipped_rhos * (rewards + discounts * next_values - values)

    # v_s - V(x_s) = delta_s + gamma_s c_s (v_{s+1} - V(x_{s+1})), backwards from 0.
    correction = torch.zeros_like(bootstrap_value)
    corrections = []
    for t in range(values.shape[0] - 1, -1, -1):
        correction = deltas[t] + discounts[t] * cs[t] * correction
        corrections.append(correction)
    vs = torch.stack(corrections[::-1]) + values if corrections else values

    next_vs = torch.cat([vs[1:], bootstrap_value.unsqueeze(0)])
    pg_rhos = rhos if clip_pg_rho_threshold is None else rhos.clamp(max=clip_pg_rho_threshold)
    return VTraceReturns(vs, pg_rhos * (rewards + discounts * next_vs - values))
