"""APPO against NumPy transcriptions, and its updates against an independent PPO."""

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impala_torch.agents import make_agent
from impala_torch.algorithms import appo
from impala_torch.algorithms.appo import Appo
from impala_torch.algorithms.base import Part
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning import optimizers
from impala_torch.learning.group import Group
from impala_torch.structures import (
    AgentInput,
    AgentOutput,
    EnvironmentSpec,
    ObservationSpec,
    Unroll,
    empty_unroll,
)
from tests.test_vtrace import paper_vtrace

T, B, A, D = 6, 4, 3, 5
SPEC = EnvironmentSpec(ObservationSpec((D,), "float32", 1), A)
FLAGS = Config(
    algorithm="appo",
    discounting=0.9,
    vtrace_lambda=0.8,
    baseline_cost=0.7,
    ratio_clipping=0.15,
    reward_clipping="none",
    target_kl=0.0,
    learning_rate=0.003,
    epsilon=1e-5,
)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def of_actions(x, actions):
    return np.take_along_axis(x, actions[..., None], -1)[..., 0]


def unroll_of(seed: int, size: int = B) -> Unroll:
    rng = np.random.default_rng(seed)
    unroll = empty_unroll(SPEC, T, 0, size)
    for name in ("observation", "reward", "policy_logits", "final_value"):
        field = getattr(unroll, name)
        field[...] = rng.normal(size=field.shape)
    unroll.done[...] = rng.random(unroll.done.shape) < 0.2
    unroll.final_value[...] *= unroll.done
    unroll.action[...] = rng.integers(0, A, unroll.action.shape)
    return unroll


def tensors(unroll: Unroll) -> Unroll:
    return Unroll(*(torch.from_numpy(field) for field in unroll))


def table(logits: np.ndarray, baseline: np.ndarray):
    """A forward that looks its outputs up, for a whole batch."""
    outputs = AgentOutput(torch.tensor(logits), torch.tensor(baseline))
    return lambda unroll, network: outputs


def random_outputs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(T + 1, B, A)).astype(np.float32),
        rng.normal(size=(T + 1, B)).astype(np.float32),
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_targets_and_loss_against_numpy(normalize):
    config = FLAGS.replace(normalize_advantages=normalize)
    unroll = unroll_of(1)
    logits, baseline = random_outputs(2)
    moved, moved_baseline = random_outputs(3)
    moved = logits + 0.2 * moved  # a few of the ratios are clipped, on both sides
    agent = make_agent("MLPAgent", SPEC)
    algorithm = Appo(config, agent, table(logits, baseline), Group())
    targets = algorithm.targets(tensors(unroll))
    algorithm.forward = table(moved, moved_baseline)
    loss, metrics = algorithm.loss(Part(tensors(unroll), targets), 0.03)

    actions = unroll.action[:-1]
    behaviour = of_actions(log_softmax(unroll.policy_logits[:-1]), actions)
    old, new = log_softmax(logits[:-1]), log_softmax(moved[:-1])
    vs = paper_vtrace(
        of_actions(old, actions) - behaviour,
        0.9 * ~unroll.done[1:],
        unroll.reward[1:] + 0.9 * unroll.final_value[1:],
        baseline[:-1],
        baseline[-1],
        1.0,
        1.0,
        0.8,
    )[0]
    advantages = vs - baseline[:-1]
    if normalize:
        advantages = (advantages - advantages.mean()) / advantages.std()
    ratios = np.exp(of_actions(new, actions) - behaviour)
    surrogate = np.minimum(ratios * advantages, np.clip(ratios, 0.85, 1.15) * advantages)
    squares = (vs - moved_baseline[:-1]) ** 2
    entropy = -(np.exp(new) * new).sum(-1)
    assert 0.2 < float(metrics["clipped_share"]) < 1
    np.testing.assert_allclose(targets["vs"], vs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets["advantages"], advantages, rtol=1e-3, atol=1e-4)
    expected = {
        "pg_loss": -surrogate.mean(),
        "baseline_loss": 0.5 * 0.7 * squares.mean(),
        "entropy_loss": -0.03 * entropy.mean(),
        "kl": (np.exp(old) * (old - new)).sum(-1).mean(),
        "mean_rho": np.minimum(ratios, 1).mean(),
        "clipped_share": (np.abs(ratios - 1) > 0.15).mean(),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-3, abs=1e-5), name
    total = expected["pg_loss"] + expected["baseline_loss"] + expected["entropy_loss"]
    assert float(loss) == pytest.approx(total, rel=1e-4)


numbers = st.lists(st.floats(-3, 3), min_size=1, max_size=8)


@settings(deadline=None)
@given(numbers, st.floats(0.05, 0.5), st.integers(0, 2**32 - 1))
def test_what_moved_too_far_has_no_gradient(logs, clipping, seed):
    ratios = torch.tensor(logs, dtype=torch.float64).exp().requires_grad_()
    advantages = torch.from_numpy(np.random.default_rng(seed).normal(size=len(logs)))
    appo.surrogate_loss(ratios, advantages, clipping).backward()
    with torch.no_grad():
        too_far = torch.where(advantages > 0, ratios > 1 + clipping, ratios < 1 - clipping)
        expected = torch.where(too_far, 0.0, -advantages / len(logs))
    torch.testing.assert_close(ratios.grad, expected)


# --- an independent PPO -------------------------------------------------------------------------


def gae(rewards, dones, values, bootstrap, discount, lam):
    """Generalised advantage estimation, backwards over time as PPO codes have it."""
    advantages, last = np.zeros_like(values), np.zeros_like(bootstrap)
    for t in reversed(range(len(values))):
        following = bootstrap if t == len(values) - 1 else values[t + 1]
        going_on = 1.0 - dones[t]
        delta = rewards[t] + discount * following * going_on - values[t]
        last = delta + discount * lam * going_on * last
        advantages[t] = last
    return advantages


def run(agent, unroll):
    """[T + 1, B, ...] outputs of an agent over an unroll."""
    last = torch.cat([unroll.initial_action[None], unroll.action[:-1]])
    outputs, _ = agent(
        AgentInput(unroll.observation[: T + 1], unroll.reward, unroll.done, last),
        unroll.agent_state,
    )
    return outputs


def test_updates_are_those_of_an_independent_ppo():
    """Where the behaviour policy is the agent itself, V-trace is GAE and APPO is PPO.

    The other is written from the PPO paper with PyTorch's Adam and clipping: a network of its own
    with the same weights, two epochs of two minibatches.
    """
    config = FLAGS.replace(batch_reuse=2, num_minibatches=2, batch_size=B)
    torch.manual_seed(3)
    agent, theirs = make_agent("MLPAgent", SPEC), make_agent("MLPAgent", SPEC)
    theirs.load_state_dict(agent.state_dict())
    unroll = tensors(unroll_of(7))
    with torch.no_grad():
        outputs = run(agent, unroll)
    unroll = unroll._replace(policy_logits=outputs.policy_logits)

    ours = Appo(config, agent, lambda unroll, network: run(agent, unroll), Group())
    optimizer = optimizers.make(ours.optimizer, list(agent.parameters()), config)
    updates = 0
    for part in ours.parts(unroll, seed=5):
        loss, _ = ours.loss(part, 0.01)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        updates += 1
    assert updates == 4

    rewards = (unroll.reward[1:] + 0.9 * unroll.final_value[1:]).numpy()
    values = outputs.baseline.numpy()
    advantages = gae(
        rewards, unroll.done[1:].numpy().astype(float), values[:-1], values[-1], 0.9, 0.8
    )
    returns = torch.tensor(advantages + values[:-1], dtype=torch.float32)
    advantages = (advantages - advantages.mean()) / advantages.std()
    advantages = torch.tensor(advantages, dtype=torch.float32)
    old = torch.distributions.Categorical(logits=outputs.policy_logits[:-1])
    old_log_probs = old.log_prob(unroll.action[:-1])
    adam = torch.optim.Adam(theirs.parameters(), lr=0.003, eps=1e-5)
    seeds = np.random.SeedSequence([config.seed, 5]).generate_state(1)
    generator = torch.Generator().manual_seed(int(seeds[0]))
    for _ in range(2):
        for columns in ours._deal(B, 2, generator):
            outputs = run(theirs, unroll)
            now = torch.distributions.Categorical(logits=outputs.policy_logits[:-1, columns])
            log_probs = now.log_prob(unroll.action[:-1, columns])
            ratio = (log_probs - old_log_probs[:, columns]).exp()
            first = -advantages[:, columns] * ratio
            second = -advantages[:, columns] * torch.clamp(ratio, 0.85, 1.15)
            errors = outputs.baseline[:-1, columns] - returns[:, columns]
            loss = torch.max(first, second).mean() + 0.7 * 0.5 * (errors**2).mean()
            loss = loss - 0.01 * now.entropy().mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            adam.step()
    for mine, their in zip(agent.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


# --- minibatches --------------------------------------------------------------------------------


def test_minibatches_have_each_unroll_once_and_are_dealt_anew_each_time():
    config = FLAGS.replace(batch_reuse=3, num_minibatches=4, batch_size=8)
    agent = make_agent("MLPAgent", SPEC)
    algorithm = Appo(config, agent, lambda unroll, network: run(agent, unroll), Group())
    unroll = tensors(unroll_of(1, 8))
    parts = list(algorithm.parts(unroll, seed=1))
    assert len(parts) == 12
    groups = set()
    for epoch in range(3):
        seen = [part.unroll.reward[1].tolist() for part in parts[4 * epoch : 4 * epoch + 4]]
        assert sorted(itertools.chain(*seen)) == sorted(unroll.reward[1].tolist())
        groups.add(frozenset(map(frozenset, seen)))
    assert len(groups) > 1
    part = parts[5]
    column = unroll.reward[1].tolist().index(part.unroll.reward[1, 0])
    whole = algorithm.targets(unroll)
    for name, target in part.targets.items():
        torch.testing.assert_close(target[:, 0], whole[name][:, column])

    def rewards(**flags) -> list[list[float]]:
        other = Appo(config.replace(**flags), agent, algorithm.forward, Group())
        return [part.unroll.reward[1].tolist() for part in other.parts(unroll, seed=1)]

    assert rewards() == [part.unroll.reward[1].tolist() for part in parts]
    assert rewards(seed=2) != rewards()


# --- what it keeps ------------------------------------------------------------------------------


def used_with(divergences, left=1.0, **flags) -> float:
    algorithm = Appo(FLAGS.replace(**flags), make_agent("MLPAgent", SPEC), None, Group())
    for divergence in divergences:
        algorithm._first, algorithm._divergence = Part(None, {}), [torch.tensor(divergence)]
        algorithm.used(left)
    return algorithm.learning_rate_scale


def test_the_step_follows_the_divergence():
    assert used_with([0.021], target_kl=0.01) == pytest.approx(1 / 1.5)
    assert used_with([0.0049], target_kl=0.01) == pytest.approx(1.5)
    assert used_with([0.019, 0.0051], target_kl=0.01) == 1
    assert used_with([1.0] * 50, target_kl=0.01) == pytest.approx(0.03)
    assert used_with([0.0] * 50, target_kl=0.01) == pytest.approx(10)
    assert used_with([1.0, 0.0], target_kl=0.0) == 1
    # The first half of the schedule changes nothing; then a quarter is left, and of the target too.
    assert used_with([0.019, 0.0051], left=0.5, target_kl=0.01) == 1
    assert used_with([0.0051], left=0.25, target_kl=0.01) == pytest.approx(1 / 1.5)
    assert used_with([0.0049, 0.0013], left=0.25, target_kl=0.01) == 1


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_divergence_is_of_what_the_batch_moved(minibatches):
    """Also of a batch that is used once, whose only loss is told of before its step."""
    config = FLAGS.replace(target_kl=1e-6, num_minibatches=minibatches, batch_reuse=1)
    torch.manual_seed(1)
    agent = make_agent("MLPAgent", SPEC)
    algorithm = Appo(config, agent, lambda unroll, network: run(agent, unroll), Group())
    unroll = tensors(unroll_of(4))
    for moves, scale in ((0.3, 1 / 1.5), (0.0, 1.0)):
        for part in algorithm.parts(unroll, seed=1):
            algorithm.loss(part, 0.0)
            with torch.no_grad():
                agent.policy.bias[0] += moves
        algorithm.used(1.0)
        assert algorithm.learning_rate_scale == pytest.approx(scale)


def test_the_given_step_is_kept_to_after_a_run_that_followed_the_divergence():
    algorithm = Appo(FLAGS, make_agent("MLPAgent", SPEC), None, Group())  # --target_kl=0
    algorithm.kept()["learning_rate_scale"].fill_(7.0)  # of the checkpoint
    assert algorithm.learning_rate_scale == 1


def test_an_agent_that_cannot_be_copied_is_told():
    agent = make_agent("MLPAgent", SPEC)
    agent.lock = threading.Lock()
    with pytest.raises(UserError, match="--target_network: --agent_name=SimpleConvNetAgent cannot"):
        Appo(FLAGS.replace(target_network=2), agent, None, Group())


def impact(target_log_probs, behaviour, new, advantages, clipping):
    """IMPACT's surrogate by its definition (Luo et al. 2019, section 3.2), rho = 2."""
    weight = np.minimum(np.exp(behaviour - target_log_probs), 2.0)
    ratio = weight * np.exp(new - behaviour)
    clipped = np.clip(ratio, 1 - clipping, 1 + clipping)
    return np.minimum(ratio * advantages, clipped * advantages).mean()


def test_the_target_network_gives_targets_and_ratios():
    config = FLAGS.replace(target_network=8, normalize_advantages=False)
    torch.manual_seed(1)
    agent = make_agent("MLPAgent", SPEC)
    algorithm = Appo(config, agent, lambda unroll, network: run(network or agent, unroll), Group())
    unroll = tensors(unroll_of(4))
    first = algorithm.targets(unroll)  # the copy is of now
    with torch.no_grad():
        before = run(agent, unroll)
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        now = run(agent, unroll)
    algorithm.stepped()
    second = algorithm.targets(unroll)
    for name in first:
        torch.testing.assert_close(first[name], second[name])
    _, metrics = algorithm.loss(Part(unroll, second), 0.0)
    actions = unroll.action[:-1].numpy()

    def of(logits):
        return of_actions(log_softmax(logits[:-1].numpy()), actions)

    expected = impact(
        of(before.policy_logits),
        of(unroll.policy_logits),
        of(now.policy_logits),
        second["advantages"].numpy(),
        0.15,
    )
    assert float(metrics["pg_loss"]) == pytest.approx(-expected, rel=1e-3)
    for _ in range(7):
        algorithm.stepped()
    assert not torch.allclose(algorithm.targets(unroll)["vs"], second["vs"])  # copied anew


def test_what_is_kept_is_restored_in_place():
    config = FLAGS.replace(target_network=8, target_kl=0.01)
    agent = make_agent("MLPAgent", SPEC)
    algorithm = Appo(config, agent, None, Group())
    kept = algorithm.kept()
    assert {"learning_rate_scale", "target.steps", "target.policy.weight"} <= kept.keys()
    kept["learning_rate_scale"].fill_(0.5)
    assert algorithm.learning_rate_scale == 0.5
