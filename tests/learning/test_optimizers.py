"""TensorFlow's RMSProp by its update rule, and the learning rate's schedule."""

import copy
import math

import pytest
import torch

from impala_torch.flags.config import Config
from impala_torch.learning.optimizers import Adam, TFRMSProp, linear_decay, make


def stepped(grads, **kwargs):
    """A parameter's values after each gradient, from 1."""
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = TFRMSProp([param], **kwargs)
    values = []
    for grad in grads:
        param.grad = torch.tensor([grad])
        optimizer.step()
        values.append(param.item())
    return values


def test_two_steps_worked_out_by_hand():
    # ms starts at ONE: 0.9 * 1 + 0.1 * 4 = 1.3; then 0.9 * 1.3 + 0.1 * 1 = 1.27.
    first = 1 - 0.5 * 2 / math.sqrt(1.3 + 0.1)
    second = first - 0.5 * -1 / math.sqrt(1.27 + 0.1)
    got = stepped([2.0, -1.0], lr=0.5, decay=0.9, momentum=0.0, epsilon=0.1)
    assert got == pytest.approx([first, second], rel=1e-6)


def test_momentum_worked_out_by_hand():
    # The momentum takes in lr * g / root, and what is subtracted is the momentum.
    first = 0.5 * 2 / math.sqrt(1.3 + 0.1)
    second = 0.8 * first + 0.5 * -1 / math.sqrt(1.27 + 0.1)
    got = stepped([2.0, -1.0], lr=0.5, decay=0.9, momentum=0.8, epsilon=0.1)
    assert got == pytest.approx([1 - first, 1 - first - second], rel=1e-6)


def test_it_is_not_pytorchs_rmsprop():
    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.tensor([2.0])
    torch.optim.RMSprop([param], lr=0.5, alpha=0.9, eps=0.1).step()
    assert abs(param.item() - stepped([2.0], lr=0.5, decay=0.9, epsilon=0.1)[0]) > 0.1


def test_the_state_is_there_before_the_first_step_and_survives_a_restart():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = TFRMSProp([param], momentum=0.9)
    assert torch.equal(optimizer.state[param]["mean_square"], torch.ones(2))
    assert torch.equal(optimizer.state[param]["momentum"], torch.zeros(2))
    param.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    other = torch.nn.Parameter(param.detach().clone())
    restored = TFRMSProp([other], momentum=0.9)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((param, optimizer), (other, restored)):
        one.grad = torch.tensor([-3.0, 0.5])
        its.step()
    assert torch.equal(param, other)


def test_a_parameter_without_gradient_stays():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    params[0].grad = torch.ones(1)
    optimizer = TFRMSProp(params)
    optimizer.step()
    assert params[0].item() != 1
    assert params[1].item() == 1
    assert torch.equal(optimizer.state[params[1]]["mean_square"], torch.ones(1))


def test_the_learning_rate_falls_linearly_to_zero():
    assert linear_decay(0.4, 0, 100) == 0.4
    assert linear_decay(0.4, 25, 100) == pytest.approx(0.3)
    assert linear_decay(0.4, 100, 100) == 0
    assert linear_decay(0.4, 101, 100) == 0


def test_restoring_keeps_this_runs_hyperparameters_and_takes_only_moments_it_has():
    param = torch.nn.Parameter(torch.zeros(3))
    saved = TFRMSProp([param], lr=1.0, decay=0.5, momentum=0.9, epsilon=0.3)
    saved.state[param]["mean_square"].fill_(7.0)
    other = torch.nn.Parameter(torch.zeros(3))
    restored = TFRMSProp([other], lr=2.0, decay=0.6, momentum=0.0, epsilon=0.4)
    restored.load_state_dict(saved.state_dict())
    group = restored.param_groups[0]
    assert [group[name] for name in ("lr", "decay", "momentum", "epsilon")] == [2.0, 0.6, 0.0, 0.4]
    assert list(restored.state[other]) == ["mean_square"]
    assert restored.state[other]["mean_square"].tolist() == [7.0] * 3
    with pytest.raises(ValueError, match="shape"):
        TFRMSProp([torch.nn.Parameter(torch.zeros(4))]).load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match=r"1 parameters instead of 2"):
        TFRMSProp([other, torch.nn.Parameter(torch.zeros(3))]).load_state_dict(saved.state_dict())


def test_adam_is_pytorchs_with_its_state_from_the_start():
    torch.manual_seed(1)
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = Adam(ours.parameters(), lr=0.01, eps=1e-5)
    assert len(optimizer.state_dict()["state"]) == 2
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01, eps=1e-5)
    for _ in range(5):
        inputs = torch.randn(4, 3)
        for layer, one in ((ours, optimizer), (theirs, reference)):
            one.zero_grad()
            layer(inputs).square().sum().backward()
            one.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_adam_takes_over_moments_and_keeps_its_hyperparameters():
    first, second = (torch.nn.Linear(3, 2) for _ in range(2))
    before = Adam(first.parameters(), lr=0.01, eps=1e-5)
    first(torch.ones(1, 3)).sum().backward()
    before.step()
    after = Adam(second.parameters(), lr=0.5, eps=1e-3)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert (after.param_groups[0]["lr"], after.param_groups[0]["eps"]) == (0.5, 1e-3)
    for mine, theirs in zip(after.state.values(), before.state.values(), strict=True):
        assert mine["step"] == 1
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ValueError, match="'sgd'"):
        make("sgd", [], Config())
