"""Coding of observations, and stacks made of single frames."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impala_torch.agents.stacking import FrameStacker, stack_frames
from impala_torch.endpoint import blocks


@given(
    rows=st.integers(1, 12),
    envs=st.integers(1, 4),
    shape=st.sampled_from([(7, 5), (3, 4, 4), (6,)]),
    dtype=st.sampled_from(["uint8", "float32"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_observations_survive_the_wire(rows, envs, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    observation = rng.integers(0, 4, (rows, envs, *shape)).astype(dtype)
    coded = blocks.Encoder().encode(observation)
    assert len(coded) == envs
    out = np.full_like(observation, 99)
    decoder = blocks.Decoder()
    for env, block in enumerate(coded):
        decoder.decode(block, out[:, env])
    np.testing.assert_array_equal(out, observation)


def test_repeated_frames_cost_next_to_nothing():
    frame = np.random.default_rng(0).integers(0, 255, (84, 84), dtype=np.uint8)
    one = blocks.Encoder().encode(frame[None, None])
    many = blocks.Encoder().encode(np.repeat(frame[None, None], 20, axis=0))
    assert len(many[0]) < 1.1 * len(one[0])


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "noise", "empty"])
def test_a_damaged_block_is_refused(damage):
    observation = np.random.default_rng(1).integers(0, 9, (5, 1, 8, 8), dtype=np.uint8)
    (block,) = blocks.Encoder().encode(observation)
    flipped = bytearray(block)
    flipped[len(block) // 2] ^= 0xFF
    bad = {
        "cut": block[: len(block) // 2],
        "flipped": bytes(flipped),
        "longer": blocks.Encoder().encode(np.repeat(observation, 2, axis=0))[0],
        "noise": b"\x00" * 40,
        "empty": b"",
    }[damage]
    with pytest.raises(ValueError, match="block"):
        blocks.Decoder().decode(bad, np.empty((5, 8, 8), np.uint8))


def reference_stacks(single, done, stack):
    """[T + 1, B, K, *shape], slowly: walk back from each row until an episode's start."""
    rows, batch = done.shape
    stacks = np.zeros((rows, batch, stack, *single.shape[2:]), single.dtype)
    for t in range(rows):
        for b in range(batch):
            for age in range(stack):
                stacks[t, b, stack - 1 - age] = single[t - age + stack - 1, b]
                if t - age >= 0 and done[t - age, b]:
                    break
    return stacks


@given(
    rows=st.integers(1, 9),
    batch=st.integers(1, 3),
    stack=st.integers(2, 5),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_stacks_never_reach_across_an_episodes_start(rows, batch, stack, share, seed):
    rng = np.random.default_rng(seed)
    single = rng.integers(1, 255, (rows + stack - 1, batch, 2, 3), dtype=np.uint8)
    done = rng.random((rows, batch)) < share
    stacked = stack_frames(torch.from_numpy(single), torch.from_numpy(done), stack)
    np.testing.assert_array_equal(stacked.numpy(), reference_stacks(single, done, stack))


@pytest.mark.parametrize("stack", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_actors_stacks_are_the_learners(dtype, stack):
    rng = np.random.default_rng(3)
    rows, envs = 30, 3
    frame = rng.integers(1, 255, (rows, envs, 2, 2)).astype(dtype)
    done = rng.random((rows, envs)) < 0.2
    done[0] = True
    stacker = FrameStacker(envs, (2, 2), getattr(torch, dtype), stack)
    acting = torch.stack(
        [
            stacker.push(torch.from_numpy(f), torch.from_numpy(d)).clone()
            for f, d in zip(frame, done, strict=True)
        ]
    )
    before = np.zeros((stack - 1, envs, 2, 2), dtype)
    learning = stack_frames(
        torch.from_numpy(np.concatenate([before, frame])), torch.from_numpy(done), stack
    )
    assert torch.equal(acting, learning.view_as(acting))
    assert torch.equal(stacker.frames, acting[-1].movedim(1, 0))


@pytest.mark.parametrize("stack", [3, 4])
def test_a_look_at_a_frame_leaves_the_stacks_as_they_are(stack):
    stacker = FrameStacker(2, (1,), torch.uint8, stack)
    pushed = stacker.push(torch.tensor([[7], [9]], dtype=torch.uint8), torch.tensor([True, True]))
    peeked = stacker.peek(torch.tensor([[8], [10]], dtype=torch.uint8))
    zeros = [0] * (stack - 2)
    assert peeked[:, :, 0].tolist() == [[*zeros, 7, 8], [*zeros, 9, 10]]
    assert pushed[:, :, 0].tolist() == [[0, *zeros, 7], [0, *zeros, 9]]


def test_one_frame_needs_no_stack():
    observation = torch.zeros(3, 2, 4)
    assert stack_frames(observation, torch.zeros(3, 2, dtype=torch.bool), 1) is observation
