"""The zoo: shapes, resets, inputs, precision, and weights as they travel."""

import time

import pytest
import torch

from impala_torch.agents import ZOO, agent_factory, make_agent, precision, weights
from impala_torch.flags.errors import UserError
from impala_torch.structures import AgentInput, EnvironmentSpec, ObservationSpec

ATARI = EnvironmentSpec(ObservationSpec((84, 84), "uint8", 4), 6)
COLOUR = EnvironmentSpec(ObservationSpec((3, 84, 84), "uint8", 1), 6)
VECTOR = EnvironmentSpec(ObservationSpec((5,), "float32", 1), 6)


def spec_for(name):
    return ATARI if ZOO[name].image else VECTOR


def random_inputs(spec, rows, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if spec is VECTOR:
        observation = torch.randn(rows, batch, 5, generator=generator)
    else:
        channels = 4 if spec is ATARI else 3
        shape = (rows, batch, channels, 84, 84)
        observation = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return AgentInput(
        observation,
        torch.randn(rows, batch, generator=generator),
        torch.rand(rows, batch, generator=generator) < 0.3,
        torch.randint(0, 6, (rows, batch), generator=generator),
    )


def build(name, spec=None, dtype=torch.float32):
    torch.manual_seed(1)
    agent = make_agent(name, spec or spec_for(name), dtype)
    with torch.no_grad():
        agent.policy.weight.mul_(100)  # small at first; here differences are to show
    return agent


@pytest.mark.parametrize("name", ZOO)
def test_many_rows_at_once_are_one_row_after_the_other(name):
    agent = build(name)
    rows, batch = 6, 2
    inputs = random_inputs(spec_for(name), rows, batch)
    assert inputs.done.any()
    start = torch.randn(batch, agent.state_size)
    together, end = agent(inputs, start)
    assert together.policy_logits.shape == (rows, batch, 6)
    assert together.baseline.shape == (rows, batch)
    assert together.policy_logits.dtype == together.baseline.dtype == torch.float32
    state = start
    for row in range(rows):
        one = AgentInput(*(field[row : row + 1] for field in inputs))
        output, state = agent(one, state)
        torch.testing.assert_close(
            output.policy_logits[0], together.policy_logits[row], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(output.baseline[0], together.baseline[row], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].recurrent])
def test_done_forgets_and_nothing_else_does(name):
    agent = build(name)
    inputs = random_inputs(spec_for(name), 1, 2)
    for done, forgets in ((True, True), (False, False)):
        one = inputs._replace(done=torch.full((1, 2), done))
        fresh, _ = agent(one, agent.initial_state(2))
        other, _ = agent(one, torch.randn(2, agent.state_size))
        assert torch.allclose(fresh.policy_logits, other.policy_logits) == forgets


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("field", ["observation", "reward", "last_action"])
def test_every_input_is_seen(name, field):
    agent = build(name)
    inputs = random_inputs(spec_for(name), 1, 3)
    other = random_inputs(spec_for(name), 1, 3, seed=9)
    changed = inputs._replace(**{field: getattr(other, field)})
    state = agent.initial_state(3)
    assert not torch.allclose(agent(inputs, state)[0].baseline, agent(changed, state)[0].baseline)


def test_the_last_reward_is_clipped():
    agent = build("MLPAgent")
    inputs = random_inputs(VECTOR, 1, 1)
    huge, one = (inputs._replace(reward=torch.full((1, 1), value)) for value in (50.0, 1.0))
    state = agent.initial_state(1)
    assert torch.equal(agent(huge, state)[0].baseline, agent(one, state)[0].baseline)


def count(convolutions, dense, actions=6, core=0):
    """Weights of a network by hand: convolutions (in, out, kernel), dense (in, out)."""
    total = sum(i * o * k * k + o for i, o, k in convolutions)
    total += sum(i * o + o for i, o in dense)
    features = dense[-1][1] + 1 + actions  # last reward and action appended
    if core:
        total += 4 * core * (features + core + 2)
        features = core
    return total + features * actions + actions + features + 1


RESNET = [(4, 16, 3), *[(16, 16, 3)] * 4, (16, 32, 3), *[(32, 32, 3)] * 9]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SimpleConvNetAgent", count([(4, 32, 8), (32, 64, 4), (64, 64, 3)], [(3136, 512)])),
        ("ShallowConvNetAgent", count([(4, 16, 8), (16, 32, 4)], [(2592, 256)])),
        ("ShallowConvLSTMAgent", count([(4, 16, 8), (16, 32, 4)], [(2592, 256)], core=256)),
        ("ResNetAgent", count(RESNET, [(3872, 256)])),
        ("ResNetLSTMAgent", count(RESNET, [(3872, 256)], core=256)),
    ],
)
def test_networks_have_the_published_sizes(name, expected):
    assert sum(param.numel() for param in build(name).parameters()) == expected


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].image])
def test_bfloat16_is_close_to_float32_in_acting_and_in_training(name):
    inputs = random_inputs(ATARI, 2, 3)
    exact = build(name)
    expected, _ = exact(inputs, exact.initial_state(3))
    for prepare in (lambda agent: agent, lambda agent: agent.for_acting()):
        agent = prepare(build(name, dtype=torch.bfloat16))
        got, _ = agent(inputs, agent.initial_state(3))
        assert got.policy_logits.dtype == torch.float32
        scale = expected.policy_logits.abs().max()
        assert (got.policy_logits - expected.policy_logits).abs().max() < 0.05 * scale + 0.02
    assert all(param.dtype == torch.float32 for param in build(name).parameters())


@pytest.mark.parametrize("name", ["SimpleConvNetAgent", "ResNetLSTMAgent"])
def test_colour_images_without_stack(name):
    agent = build(name, COLOUR)
    output, _ = agent(random_inputs(COLOUR, 2, 2), agent.initial_state(2))
    assert output.policy_logits.shape == (2, 2, 6)


@pytest.mark.parametrize("name", ZOO)
def test_weights_survive_the_wire(name):
    agent = build(name)
    flat = weights.flatten(agent)
    assert flat.dtype == torch.float32
    layout = weights.layout(agent)
    assert sum(torch.Size(shape).numel() for _, shape in layout) == flat.numel()
    torch.manual_seed(99)
    other = make_agent(name, spec_for(name))
    weights.load_flat(other, flat)
    for key, value in agent.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    acting = make_agent(name, spec_for(name), torch.bfloat16).for_acting()
    weights.load_flat(acting, flat)  # cast on the way
    torch.testing.assert_close(weights.flatten(acting), flat, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="do not fill"):
        weights.load_flat(other, flat[:-1])


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"--agent_name=DQN is not in the zoo: Simple.*MLPLSTM"):
        agent_factory("DQN")
    with pytest.raises(UserError, match=r"vectors: use MLPAgent, MLPLSTMAgent"):
        make_agent("ResNetAgent", VECTOR)
    with pytest.raises(UserError, match=r"images: use SimpleConvNetAgent"):
        make_agent("MLPAgent", ATARI)
    tiny = EnvironmentSpec(ObservationSpec((12, 12), "uint8", 4), 6)
    with pytest.raises(UserError, match=r"as small as 12x12"):
        make_agent("SimpleConvNetAgent", tiny)


def test_precision_follows_the_flag_and_the_machine(monkeypatch):
    assert precision.resolve("float32", "cpu") == torch.float32
    assert precision.resolve("bfloat16", "cpu") == torch.bfloat16
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda has=has: has)
        assert precision.resolve("auto", "cpu") == dtype


@pytest.mark.parametrize("learning", [True, False])
def test_auto_takes_what_a_trial_finds_faster(monkeypatch, learning):
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: True)
    tried = []

    def make(dtype):
        tried.append(dtype)
        return build("ShallowConvNetAgent", dtype=dtype)

    before = torch.random.get_rng_state()
    found = precision.choose("auto", "cpu", make, ATARI, 8, learning)
    assert tried == [torch.float32, torch.bfloat16]
    assert found in tried
    assert torch.equal(torch.random.get_rng_state(), before)  # the run's numbers are as they were

    # Whatever this processor is good at: one that takes its time loses.
    for slow, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):

        def trial(agent, *_, slow=slow):
            return lambda: time.sleep(0.02 if agent.dtype == slow else 0.001)

        monkeypatch.setattr(precision, "_trial", trial)
        assert precision.choose("auto", "cpu", make, ATARI, 8, learning) == expected


def test_nothing_is_tried_where_the_flag_or_the_machine_says_it(monkeypatch):
    def make(dtype):
        raise AssertionError("not to be tried")

    for flag in ("float32", "bfloat16"):
        assert precision.name_of(precision.choose(flag, "cpu", make, ATARI, 8, True)) == flag
    assert precision.choose("auto", "cpu", make, VECTOR, 8, True) == torch.float32
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: False)
    assert precision.choose("auto", "cpu", make, ATARI, 8, True) == torch.float32


@pytest.mark.parametrize("name", ZOO)
def test_weights_and_gradients_are_contiguous_as_horovod_wants_them(name):
    agent = build(name, dtype=torch.bfloat16)
    output, _ = agent(random_inputs(spec_for(name), 3, 2), agent.initial_state(2))
    (output.policy_logits.sum() + output.baseline.sum()).backward()
    for key, param in agent.named_parameters():
        assert param.is_contiguous(), key
        assert param.grad is None or param.grad.is_contiguous(), key


def test_the_lstm_over_an_unroll_is_torchs_cell_row_by_row():
    torch.manual_seed(4)
    agent = make_agent("MLPLSTMAgent", EnvironmentSpec(ObservationSpec((3,), "float32", 1), 2))
    rows, batch = 7, 5
    features = torch.randn(rows, batch, agent.core.input_size)
    done = torch.rand(rows, batch) < 0.3
    hidden, cell = torch.randn(2, batch, 256).unbind()
    outputs, state = agent._unroll(features, done, torch.cat([hidden, cell], dim=1))
    for row in range(rows):
        keep = (~done[row]).float().unsqueeze(1)
        hidden, cell = agent.core(features[row], (hidden * keep, cell * keep))
        torch.testing.assert_close(outputs[row], hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, torch.cat([hidden, cell], dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ShallowConvNetAgent", "SimpleConvNetAgent"])
def test_features_of_a_new_network_are_as_large_as_what_stands_beside_them(name):
    torch.manual_seed(5)
    agent = make_agent(name, EnvironmentSpec(ObservationSpec((84, 84), "uint8", 4), 6))
    pixels = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        size = agent._features(pixels).square().mean().sqrt()
    assert 0.1 < size < 2
