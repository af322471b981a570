"""What agents know of the scale of what they see, against plain NumPy; and who may change it."""

import numpy as np
import pytest
import torch

from impala_torch.agents import ZOO, make_agent, make_for, weights
from impala_torch.agents.normalizers import MeanPicture, ValueScale, VectorNormalizer
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from tests.agents.test_agents import ATARI, COLOUR, VECTOR, random_inputs, spec_for


def alone(tensor: torch.Tensor) -> None:
    """The average over a group of one."""


def test_vectors_get_mean_0_and_deviation_1_also_far_from_0():
    rng = np.random.default_rng(1)
    batches = [rng.normal([3000, -5, 0], [2, 0.5, 1e-3], (10, 8, 3)) for _ in range(20)]
    normalizer = VectorNormalizer(3)
    for batch in batches:
        vectors = torch.tensor(batch, dtype=torch.float32)
        normalizer.follow(vectors, alone)
    everything = np.concatenate(batches).reshape(-1, 3)
    np.testing.assert_allclose(normalizer.mean, everything.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(normalizer.variance.sqrt(), everything.std(0), rtol=2e-2)
    seen = normalizer(torch.tensor(everything, dtype=torch.float32)).numpy()
    assert np.abs(seen.mean(0)).max() < 0.1
    assert np.abs(seen.std(0) - 1).max() < 0.05
    assert normalizer(torch.tensor([[1e9, -1e9, 0]])).tolist()[0][:2] == [10, -10]


def test_what_never_changes_is_no_division_by_zero():
    normalizer = VectorNormalizer(1)
    vectors = torch.full((4, 2, 1), 7.0)
    for _ in range(3):
        normalizer.follow(vectors, alone)
    assert normalizer(vectors).abs().max() == 0


def test_statistics_follow_for_ever():
    normalizer = VectorNormalizer(1)
    for _ in range(1500):
        normalizer.follow(torch.zeros(2, 2, 1), alone)
    for _ in range(3000):
        normalizer.follow(torch.ones(2, 2, 1), alone)
    assert 0.9 < float(normalizer.mean) < 1


def looking(spec, dtype=torch.float32):
    """An agent whose torso is one convolution of its pixels, normalized; and that convolution."""
    torch.manual_seed(2)
    agent = ZOO["ShallowConvNetAgent"](spec, dtype)
    convolution = agent.torso[0].layers[0]
    agent.torso = torch.nn.Sequential(convolution, torch.nn.Flatten())
    agent.normalize_observations(spec)
    return agent, convolution


@pytest.mark.parametrize("spec", [ATARI, COLOUR], ids=["stacked", "colours"])
def test_the_mean_picture_is_subtracted_from_what_the_convolution_sees(spec):
    torch.manual_seed(1)
    frames = torch.randint(0, 256, (3, 2, *spec.observation.shape), dtype=torch.uint8)
    agent, convolution = looking(spec)
    agent.picture.follow(frames, alone)
    mean = frames.float().mean(dim=(0, 1))
    torch.testing.assert_close(agent.picture.mean, mean)
    channels = spec.observation.stack if spec is ATARI else 3
    pixels = torch.randint(0, 256, (5, channels, 84, 84), dtype=torch.uint8)
    expected = torch.nn.functional.conv2d(
        (pixels - mean) * 3 / 255, convolution.weight, convolution.bias, stride=4
    ).flatten(1)
    torch.testing.assert_close(agent._features(pixels), expected, rtol=1e-4, atol=1e-4)


def test_gradients_in_bfloat16_are_those_of_float32_where_little_moves():
    """As in Pong: nearly all of a picture is background, which must not drown what moves."""
    torch.manual_seed(1)
    background = torch.randint(60, 200, (1, 84, 84))
    frames = background.expand(16, 4, 84, 84).to(torch.uint8).clone()
    for number in range(16):
        frames[number, :, 3 * number : 3 * number + 4, 40:44] = 236
    weighting = torch.randn(16, 16 * 20 * 20)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        agent, convolution = looking(ATARI, dtype)
        agent.picture.follow(background.unsqueeze(0).to(torch.uint8), alone)
        (agent._features(frames) * weighting).sum().backward()
        gradients.append(convolution.weight.grad.flatten())
    apart = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert apart < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ZOO)
def test_what_is_prepared_once_is_seen_as_it_would_be(name, dtype):
    spec = spec_for(name)
    agent = make_for(Config(agent_name=name, normalize_observations=True), spec, dtype)
    inputs = random_inputs(spec, 3, 2)
    state = agent.initial_state(2)
    expected, _ = agent(inputs, state)
    kept = inputs.observation.clone()
    prepared = inputs._replace(observation=agent.prepared(inputs.observation))
    assert prepared.observation.dtype == (dtype if agent.image else torch.float32)
    found, _ = agent(prepared, state)
    assert torch.equal(found.baseline, expected.baseline)
    again, _ = agent(prepared, state)
    assert torch.equal(again.baseline, expected.baseline)
    assert torch.equal(inputs.observation, kept)


@pytest.mark.parametrize("name", ZOO)
def test_every_agent_of_the_zoo_can_normalize_and_its_statistics_are_weights(name):
    spec = spec_for(name)
    config = Config(agent_name=name, normalize_observations=True)
    agent, plain = make_for(config, spec), make_agent(name, spec)
    assert plain.normalizer is None
    added = {name.rpartition(".")[2] for name in agent.state_dict().keys() - plain.state_dict()}
    assert added == ({"mean", "batches"} if agent.image else {"mean", "batches", "variance"})
    observation = random_inputs(spec, 6, 2).observation
    frames = observation[:, :, -1] if agent.image else observation
    agent.normalizer.follow(frames, alone)
    plain.load_state_dict(agent.state_dict(), strict=False)
    other = make_for(config, spec)
    weights.load_flat(other, weights.flatten(agent))
    inputs = random_inputs(spec, 2, 3, seed=2)
    state = agent.initial_state(3)
    assert torch.equal(agent(inputs, state)[0].baseline, other(inputs, state)[0].baseline)
    differs = plain(inputs, state)[0].baseline - agent(inputs, state)[0].baseline
    assert differs.abs().max() > 1e-4
    # Acting, evaluating and learning change nothing: only the learner's ``follow`` does.
    before = weights.flatten(agent)
    agent(inputs, state)[0].baseline.sum().backward()
    assert torch.equal(weights.flatten(agent), before)


def test_acting_in_bfloat16_sees_the_mean_picture_as_learning_does():
    config = Config(agent_name="ShallowConvNetAgent", normalize_observations=True)
    torch.manual_seed(2)
    agent = make_for(config, ATARI, torch.bfloat16)
    agent.normalizer.mean.fill_(100.3)
    acting = make_for(config, ATARI, torch.bfloat16).for_acting()
    weights.load_flat(acting, weights.flatten(agent))
    inputs = random_inputs(ATARI, 1, 4)
    ours, theirs = (one(inputs, one.initial_state(4))[0].baseline for one in (agent, acting))
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_values_keep_what_they_were_when_their_scale_moves():
    torch.manual_seed(1)
    scale, head = ValueScale(), torch.nn.Linear(4, 1)
    features = torch.randn(9, 4)
    before = scale(head(features))
    targets = torch.randn(5, 3) * 20 + 100
    scale.follow(targets, alone, head)
    torch.testing.assert_close(scale(head(features)), before, rtol=1e-4, atol=1e-4)
    assert float(scale.mean) == pytest.approx(float(targets.mean()), rel=1e-4)
    assert float(scale.deviation) == pytest.approx(float(targets.std(correction=0)), rel=1e-3)


@pytest.mark.parametrize("deviation", [0.1, 1.0, 1e4])
def test_so_does_what_is_far_from_0_from_the_first_batch_on(deviation):
    rng = np.random.default_rng(3)
    numbers = torch.tensor(rng.normal(1e4, deviation, (33, 32)), dtype=torch.float32)
    scale, head = ValueScale(), torch.nn.Linear(4, 1)
    scale.follow(numbers, alone, head)
    assert float(scale.deviation) == pytest.approx(float(numbers.std()), rel=2e-2)
    normalizer = VectorNormalizer(1)
    normalizer.follow(numbers.unsqueeze(-1), alone)
    assert float(normalizer.variance.sqrt()) == pytest.approx(float(numbers.std()), rel=2e-2)


def test_an_agent_that_cannot_says_so():
    class OwnForward(ZOO["MLPAgent"]):
        def forward(self, inputs, state):
            return super().forward(inputs, state)

    agent = OwnForward(VECTOR)
    assert agent.prepared(torch.ones(1, 1, 5)).dtype == torch.float32
    with pytest.raises(ValueError, match="forward is its own"):
        agent.normalize_observations(VECTOR)
    with pytest.raises(ValueError, match="forward is its own"):
        agent.normalize_values()

    agent = ZOO["MLPAgent"](VECTOR)
    agent.baseline = torch.nn.Sequential(agent.baseline)
    with pytest.raises(ValueError, match="its baseline is a Sequential"):
        agent.normalize_values()

    class NoPixelConv(ZOO["ShallowConvNetAgent"]):
        def __init__(self, spec, dtype=torch.float32):
            super().__init__(spec, dtype)
            self.torso[0].layers[0] = torch.nn.Conv2d(4, 16, 8, stride=4)

    class OwnForwardOfPixels(ZOO["ShallowConvNetAgent"]):
        def forward(self, inputs, state):
            return super().forward(inputs, state)

    pixels = torch.zeros((1, 1, 4, 84, 84), dtype=torch.uint8)
    assert OwnForwardOfPixels(ATARI).prepared(pixels) is pixels  # as its author expects them
    with pytest.raises(ValueError, match="has 0 PixelConv2d"):
        NoPixelConv(ATARI).normalize_observations(ATARI)


def test_the_flag_is_named(monkeypatch):
    def cannot(self, spec):
        raise ValueError("it cannot")

    monkeypatch.setattr(ZOO["MLPAgent"], "normalize_observations", cannot)
    config = Config(agent_name="MLPAgent", normalize_observations=True)
    with pytest.raises(UserError, match="--normalize_observations: --agent_name=MLPAgent: it can"):
        make_for(config, VECTOR)


def test_only_moments_of_a_few_frames_are_taken():
    picture = MeanPicture((2, 2))
    frames = torch.zeros((33, 1, 2, 2), dtype=torch.uint8)
    frames[::4] = 8
    picture.follow(frames, alone)
    assert picture.mean.tolist() == [[8, 8], [8, 8]]


def test_one_number_far_out_does_not_make_all_others_look_alike():
    normalizer = VectorNormalizer(2)
    generator = torch.Generator().manual_seed(1)
    for batch in range(60):
        vectors = torch.randn(16, 4, 2, generator=generator)
        if batch == 30:
            vectors[3, 2, 1] = 1e9
        normalizer.follow(vectors, lambda tensor: None)
    assert (normalizer.variance < 10).all()
    assert normalizer.mean.abs().max() < 1
    # A scale that truly changes is followed all the same.
    for _ in range(200):
        normalizer.follow(1e4 * torch.randn(16, 4, 2, generator=generator), lambda tensor: None)
    assert (normalizer.variance > 1e6).all()


def test_what_is_not_finite_moves_nothing():
    normalizer, scale = VectorNormalizer(2), ValueScale()
    head = torch.nn.Linear(2, 1)
    for value in (1.0, float("inf"), float("nan")):
        normalizer.follow(torch.full((2, 2, 2), value), lambda tensor: None)
        scale.follow(torch.full((2, 2), value), lambda tensor: None, head)
    for module in (normalizer, scale, head):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
