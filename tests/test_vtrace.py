"""V-trace against a slow transcription of the paper's equation (1), and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impala_torch import vtrace


def paper_vtrace(log_rhos, discounts, rewards, values, bootstrap, rho_bar, pg_rho_bar, lambda_=1.0):
    """Equation (1) as it is written: for each s the sum over t >= s, O(T^2), in float64."""
    rhos = np.exp(np.asarray(log_rhos, np.float64))
    clipped = rhos if rho_bar is None else np.minimum(rhos, rho_bar)
    cs = lambda_ * np.minimum(rhos, 1.0)
    length = len(rewards)
    following = np.concatenate([values[1:], bootstrap[None]])
    vs = np.array(values, np.float64)
    for s in range(length):
        for t in range(s, length):
            trace = np.ones_like(bootstrap, dtype=np.float64)
            for i in range(s, t):  # product of gamma_i c_i
                trace = trace * discounts[i] * cs[i]
            vs[s] += trace * clipped[t] * (rewards[t] + discounts[t] * following[t] - values[t])
    pg_rhos = rhos if pg_rho_bar is None else np.minimum(rhos, pg_rho_bar)
    next_vs = np.concatenate([vs[1:], bootstrap[None]])
    return vs, pg_rhos * (rewards + discounts * next_vs - values)


def random_case(seed, length, shape):
    rng = np.random.default_rng(seed)
    case = {
        "log_rhos": rng.normal(0, 1, (length, *shape)),
        "discounts": rng.choice([0.0, 0.9, 0.99], (length, *shape)),
        "rewards": rng.normal(0, 2, (length, *shape)),
        "values": rng.normal(0, 3, (length, *shape)),
        "bootstrap_value": rng.normal(0, 3, shape),
    }
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in case.items()}


@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 12),
    shape=st.sampled_from([(1,), (3,), (2, 4)]),
    rho_bar=st.sampled_from([None, 0.5, 1.0, 3.7]),
    pg_rho_bar=st.sampled_from([None, 0.7, 1.0, 2.2]),
    lambda_=st.sampled_from([0.0, 0.6, 1.0]),
)
@settings(max_examples=120, deadline=None)
def test_it_is_the_papers_equation(seed, length, shape, rho_bar, pg_rho_bar, lambda_):
    case = random_case(seed, length, shape)
    got = vtrace.from_importance_weights(
        **case,
        clip_rho_threshold=rho_bar,
        clip_pg_rho_threshold=pg_rho_bar,
        lambda_=lambda_,
    )
    arrays = [case[name].numpy() for name in case]
    vs, advantages = paper_vtrace(*arrays, rho_bar, pg_rho_bar, lambda_)
    np.testing.assert_allclose(got.vs, vs, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(got.pg_advantages, advantages, rtol=1e-4, atol=1e-3)


@given(seed=st.integers(0, 1000), length=st.integers(1, 10))
@settings(max_examples=30, deadline=None)
def test_on_policy_it_is_the_n_step_return(seed, length):
    """Remark 1: with pi = mu, vs is the n-step Bellman target."""
    case = random_case(seed, length, (2,))
    case["log_rhos"].zero_()
    got = vtrace.from_importance_weights(**case)
    target = case["bootstrap_value"].double()
    for t in range(length - 1, -1, -1):
        target = case["rewards"][t].double() + case["discounts"][t].double() * target
        np.testing.assert_allclose(got.vs[t], target, rtol=1e-4, atol=1e-3)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_nothing_leaks_across_an_episodes_end(seed):
    case = random_case(seed, 8, (2,))
    case["discounts"][4] = 0.0
    before = vtrace.from_importance_weights(**case)
    for name in ("rewards", "values", "log_rhos"):
        case[name][5:] += 100
    case["bootstrap_value"] += 100
    after = vtrace.from_importance_weights(**case)
    assert torch.equal(before.vs[:5], after.vs[:5])
    assert torch.equal(before.pg_advantages[:5], after.pg_advantages[:5])
    assert not torch.equal(before.vs[5:], after.vs[5:])


def test_from_logits_is_from_importance_weights_of_the_policies():
    rng = torch.Generator().manual_seed(2)
    behaviour, target = (torch.randn(6, 3, 5, generator=rng, requires_grad=True) for _ in range(2))
    actions = torch.randint(0, 5, (6, 3), generator=rng)
    case = random_case(3, 6, (3,))
    case.pop("log_rhos")
    case["values"].requires_grad_(True)
    got = vtrace.from_logits(behaviour, target, actions, **case, clip_rho_threshold=0.8)
    probabilities = [
        np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        for x in (behaviour.detach().numpy(), target.detach().numpy())
    ]
    taken = [np.take_along_axis(p, actions.numpy()[..., None], -1)[..., 0] for p in probabilities]
    np.testing.assert_allclose(got.behaviour_action_log_probs, np.log(taken[0]), rtol=1e-4)
    np.testing.assert_allclose(got.target_action_log_probs, np.log(taken[1]), rtol=1e-4)
    np.testing.assert_allclose(got.log_rhos, np.log(taken[1] / taken[0]), rtol=1e-3, atol=1e-4)
    expected = vtrace.from_importance_weights(got.log_rhos, **case, clip_rho_threshold=0.8)
    assert torch.equal(got.vs, expected.vs)
    assert torch.equal(got.pg_advantages, expected.pg_advantages)
    assert not any(tensor.requires_grad for tensor in got)
    assert all(tensor.dtype == torch.float32 for tensor in got)


@pytest.mark.parametrize("name", ["log_rhos", "discounts", "rewards", "values", "bootstrap_value"])
def test_shapes_that_do_not_fit_are_refused(name):
    case = random_case(0, 5, (3,))
    case[name] = case[name][..., :2]
    with pytest.raises(ValueError, match="do not fit"):
        vtrace.from_importance_weights(**case)


def test_logits_that_do_not_fit_are_refused():
    case = random_case(0, 5, (3,))
    case.pop("log_rhos")
    actions = torch.zeros(5, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="differ in shape"):
        vtrace.from_logits(torch.zeros(5, 3, 4), torch.zeros(5, 3, 6), actions, **case)
    with pytest.raises(ValueError, match="do not fit actions"):
        vtrace.from_logits(torch.zeros(4, 3, 4), torch.zeros(4, 3, 4), actions, **case)
