"""The loss's terms against NumPy and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from impala_torch.algorithms import impala
from impala_torch.flags.config import Config
from impala_torch.structures import (
    AgentOutput,
    EnvironmentSpec,
    ObservationSpec,
    Unroll,
    empty_unroll,
)
from tests.test_vtrace import paper_vtrace


def test_policy_gradient_by_hand():
    # Probabilities 3/4 and 1/4; actions 0 and 1 with advantages 2 and -1.
    logits = torch.tensor([[[math.log(3.0), 0.0]], [[math.log(3.0), 0.0]]], requires_grad=True)
    actions = torch.tensor([[0], [1]])
    advantages = torch.tensor([[2.0], [-1.0]], requires_grad=True)
    loss = impala.policy_gradient_loss(logits, actions, advantages)
    assert loss.item() == pytest.approx(-(2 * math.log(0.75) - math.log(0.25)), rel=1e-5)
    loss.backward()
    # d/dlogits of -adv log pi(a) is adv (pi - onehot(a)).
    expected = [[[2 * (0.75 - 1), 2 * 0.25]], [[-0.75, -(0.25 - 1)]]]
    np.testing.assert_allclose(logits.grad, expected, rtol=1e-5)
    assert advantages.grad is None


def test_entropy_and_baseline_by_hand():
    uniform = torch.zeros(3, 2, 4)
    assert impala.entropy_loss(uniform).item() == pytest.approx(-6 * math.log(4), rel=1e-6)
    sure = torch.tensor([[[100.0, 0.0, 0.0]]])
    assert impala.entropy_loss(sure).item() == pytest.approx(0, abs=1e-6)
    assert impala.baseline_loss(torch.tensor([[1.0, -2.0], [3.0, 0.0]])).item() == 7.0


# The entropy's weight may change from update to update; the flag's counts where none is given.
@pytest.mark.parametrize("given", [None, 0.0, 0.2])
def test_the_whole_loss_against_numpy(given):
    rng = np.random.default_rng(5)
    rows, size, actions = 7, 3, 4
    spec = EnvironmentSpec(ObservationSpec((1,), "float32", 1), actions)
    unroll = empty_unroll(spec, rows - 1, 0, size)
    unroll.reward[...] = rng.normal(0, 2, unroll.reward.shape)
    unroll.done[...] = rng.random(unroll.done.shape) < 0.3
    unroll.final_value[...] = unroll.done * rng.normal(0, 2, unroll.done.shape)
    unroll.action[...] = rng.integers(0, actions, unroll.action.shape)
    unroll.policy_logits[...] = rng.normal(size=unroll.policy_logits.shape)
    logits = rng.normal(size=(rows, size, actions)).astype(np.float32)
    baseline = rng.normal(size=(rows, size)).astype(np.float32)
    config = Config(discounting=0.9, baseline_cost=0.7, entropy_cost=0.03)
    outputs = AgentOutput(torch.tensor(logits), torch.tensor(baseline))
    total, metrics = impala.impala_loss(
        outputs, Unroll(*(torch.from_numpy(field) for field in unroll)), config, given
    )

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def of_actions(x):
        return np.take_along_axis(x, unroll.action[:-1, :, None], -1)[..., 0]

    target, behaviour = log_softmax(logits[:-1]), log_softmax(unroll.policy_logits[:-1])
    rewards = np.clip(unroll.reward[1:], -1, 1) + 0.9 * unroll.final_value[1:]
    vs, advantages = paper_vtrace(
        of_actions(target) - of_actions(behaviour),
        0.9 * ~unroll.done[1:],
        rewards,
        baseline[:-1],
        baseline[-1],
        1.0,
        1.0,
    )
    pg = -(of_actions(target) * advantages).sum()
    value = 0.7 * 0.5 * ((vs - baseline[:-1]) ** 2).sum()
    entropy = (0.03 if given is None else given) * (np.exp(target) * target).sum()
    assert metrics["pg_loss"].item() == pytest.approx(pg, rel=1e-4)
    assert metrics["baseline_loss"].item() == pytest.approx(value, rel=1e-4)
    assert metrics["entropy_loss"].item() == pytest.approx(entropy, rel=1e-4)
    assert total.item() == pytest.approx(pg + value + entropy, rel=1e-4)
