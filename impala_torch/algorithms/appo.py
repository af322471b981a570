"""APPO: PPO's clipped surrogate (Schulman et al. 2017, equation 7) over V-trace targets.

As in IMPACT (Luo et al. 2019) and RLlib's APPO: actors are a little behind, so the targets are
V-trace's, and the ratio that is clipped is to the policy that acted. A batch is used several
times, in minibatches; what is far from the behaviour policy has no gradient any more. Losses are
means.
"""

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from impala_torch import vtrace
from impala_torch.agents import Agent
from impala_torch.algorithms.base import Algorithm, Forward, Metrics, Part, Ranks
from impala_torch.algorithms.rewards import discounts_of, rewards_of
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.structures import Unroll

# The step follows the divergence as rl_games' "adaptive" schedule has it.
_KL_FACTOR = 1.5
_LEAST_SCALE, _LARGEST_SCALE = 0.03, 10.0
# IMPACT's rho: how much more than the target network may the behaviour policy have liked an action.
_LARGEST_TARGET_RATIO = 2.0
_EPSILON = 1e-8


class Appo(Algorithm):
    """Clipped surrogate, normalised advantages, a step that follows the divergence."""

    reduction = "average"
    optimizer = "adam"

    def __init__(self, config: Config, agent: Agent, forward: Forward, ranks: Ranks) -> None:
        super().__init__(config, agent, forward, ranks)
        self._scale = torch.ones(1)
        self._first: Part | None = None  # part of the batch at hand
        self._divergence: list[torch.Tensor] = []  # at its other parts, each [] float32
        self._target: Agent | None = None  # the agent as it was; None = the agent itself
        # Steps since that was copied; at the start it is due.
        self._steps = torch.full((1,), float(config.target_network))
        if config.target_network:
            try:
                self._target = copy.deepcopy(agent).requires_grad_(False)
            except Exception as error:  # whatever an agent of the user's own raises
                raise UserError(
                    f"--target_network: --agent_name={config.agent_name} cannot be copied: {error}"
                ) from error

    @torch.no_grad()
    def targets(self, unroll: Unroll[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """V-trace targets and advantages, of the target network or the weights at hand."""
        if self._target is not None:
            self._keep_target()
        outputs = self.forward(unroll, self._target)
        actions, values = unroll.action[:-1], outputs.baseline[:-1]
        found = vtrace.from_logits(
            unroll.policy_logits[:-1],
            outputs.policy_logits[:-1],
            actions,
            discounts_of(unroll, self.config),
            rewards_of(unroll, self.config),
            values,
            outputs.baseline[-1],
            lambda_=self.config.vtrace_lambda,
        )
        advantages = found.vs - values
        if self.config.normalize_advantages:
            advantages = self._normalized(advantages)
        if self.agent.value_scale is not None:
            self.agent.value_scale.follow(found.vs, self.ranks.average, self.agent.baseline)
        reference = found.behaviour_action_log_probs
        if self._target is not None:  # IMPACT's ratio, pi / mu times min(mu / target, rho)
            least = reference - math.log(_LARGEST_TARGET_RATIO)
            reference = torch.max(found.target_action_log_probs, least)
        return {
            "vs": found.vs,
            "advantages": advantages,
            "reference_log_probs": reference,
            "old_log_probs": F.log_softmax(outputs.policy_logits[:-1].float(), dim=-1),
        }

    def loss(self, part: Part, entropy_cost: float) -> tuple[torch.Tensor, Metrics]:
        """``surrogate_loss``, squared error and entropy, means over T and b."""
        outputs = self.forward(part.unroll, None)
        targets, config = part.targets, self.config
        log_probs = F.log_softmax(outputs.policy_logits[:-1].float(), dim=-1)
        taken = log_probs.gather(-1, part.unroll.action[:-1].unsqueeze(-1)).squeeze(-1)
        ratios = (taken - targets["reference_log_probs"]).exp()
        pg_loss = surrogate_loss(ratios, targets["advantages"], config.ratio_clipping)
        values = outputs.baseline[:-1].float()
        errors = targets["vs"] - values
        if self.agent.value_scale is not None:
            errors = errors / self.agent.value_scale.deviation
        value_loss = 0.5 * config.baseline_cost * errors.square().mean()
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean()
        total = pg_loss + value_loss - entropy_cost * entropy
        with torch.no_grad():
            kl = _divergence(targets["old_log_probs"], log_probs)
            if self._first is None:  # the weights are still those that it is told from
                self._first = part
            else:
                self._divergence.append(kl)
            metrics = {
                "total_loss": total,
                "pg_loss": pg_loss,
                "baseline_loss": value_loss,
                "entropy_loss": -entropy_cost * entropy,
                "entropy": entropy,
                "mean_rho": ratios.clamp(max=1).mean(),
                "baseline_mean": values.mean(),
                "kl": kl,
                "clipped_share": ((ratios - 1).abs() > config.ratio_clipping).float().mean(),
            }
        return total, {name: value.detach() for name, value in metrics.items()}

    @property
    def learning_rate_scale(self) -> float:  # type: ignore[override]
        return float(self._scale) if self.config.target_kl else 1.0

    def stepped(self) -> None:
        self._steps += 1

    def _keep_target(self) -> None:
        """Copies the agent to the target network where that is due."""
        assert self._target is not None
        if int(self._steps) >= self.config.target_network:
            self._target.load_state_dict(self.agent.state_dict())
            self._steps.zero_()
        seen = self.agent.normalizer
        if seen is not None:  # it sees as the agent does: what is usual is not learned
            assert self._target.normalizer is not None
            self._target.normalizer.load_state_dict(seen.state_dict())

    def used(self, left: float) -> None:
        """Makes the step smaller where a batch moved the policy too far, larger where too little.

        By the mean divergence at the batch's parts, but the first: of the weights before each from
        those before all, or from the target network where there is one. What is aimed at stays for
        the first half of the schedule, while there is much to learn, and falls in the second:
        divergence goes with the square of the step, so it is the square that makes the step fall
        linearly. Else the scale would undo the schedule.
        """
        first, others = self._first, self._divergence
        self._first, self._divergence = None, []
        if not self.config.target_kl or first is None:
            return
        if not others:  # the only part: seen again, after its step
            with torch.no_grad():
                outputs = self.forward(first.unroll, None)
                log_probs = F.log_softmax(outputs.policy_logits[:-1].float(), dim=-1)
                others = [_divergence(first.targets["old_log_probs"], log_probs)]
        divergence = torch.stack(others).mean()
        self.ranks.average(divergence)
        target = self.config.target_kl * min(1.0, 2 * left) ** 2
        if float(divergence) > 2 * target:
            self._scale.div_(_KL_FACTOR).clamp_(min=_LEAST_SCALE)
        elif float(divergence) < 0.5 * target:
            self._scale.mul_(_KL_FACTOR).clamp_(max=_LARGEST_SCALE)

    def kept(self) -> dict[str, torch.Tensor]:
        kept = {"learning_rate_scale": self._scale}
        if self._target is not None:
            kept["target.steps"] = self._steps
            network = self._target.state_dict()
            kept |= {f"target.{name}": tensor for name, tensor in network.items()}
        return kept

    def _normalized(self, advantages: torch.Tensor) -> torch.Tensor:
        """Advantages of mean 0 and deviation 1 over all ranks' batches, [T, B]."""
        moments = torch.stack([advantages.mean(), advantages.square().mean()])
        self.ranks.average(moments)
        deviation = (moments[1] - moments[0].square()).clamp(min=0).sqrt()
        return (advantages - moments[0]) / (deviation + _EPSILON)


def _divergence(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence of ``new`` from ``old``, log-probabilities [T, b, A]; []."""
    return (old.exp() * (old - new)).sum(dim=-1).mean()


def surrogate_loss(ratios: torch.Tensor, advantages: torch.Tensor, clipping: float) -> torch.Tensor:
    """PPO's clipped surrogate, negated: what is minimised.

    Args:
      ratios: pi(a|x) / mu(a|x), [...]; the gradient flows through them.
      advantages: [...].
      clipping: epsilon; ratios beyond 1 +- epsilon that would gain have no gradient.

    Returns:
      The mean, [].
    """
    clipped = ratios.clamp(1 - clipping, 1 + clipping)
    return -torch.min(ratios * advantages, clipped * advantages).mean()
