"""Rewards as learners see them, by numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from impala_torch.algorithms import rewards


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("abs_one", [-1, -0.5, 0, 0.5, 1]),
        ("none", [-20, -0.5, 0, 0.5, 20]),
        (
            "soft_asymmetric",
            [
                1.5 * math.tanh(-4),
                1.5 * math.tanh(-0.1),
                0,
                5 * math.tanh(0.1),
                5 * math.tanh(4),
            ],
        ),
    ],
)
def test_reward_clipping(kind, expected):
    got = rewards.clip_rewards(torch.tensor([-20.0, -0.5, 0.0, 0.5, 20.0]), kind)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_an_unknown_clipping_is_an_error():
    with pytest.raises(ValueError, match="'some'"):
        rewards.clip_rewards(torch.zeros(1), "some")
