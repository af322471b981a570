"""n learners of B unrolls are one of n x B: the same unrolls on one rank, and halves on two."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from impala_torch.learning.group import Group
from tests.conftest import ROOT
from tests.learning import one_learner_job as job

pytestmark = pytest.mark.slow

UPDATES = 10


@pytest.fixture
def two_ranks(start, tmp_path):
    """Has two real ranks learn; returns what each has."""

    def run(flags: dict) -> list[dict]:
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        process = start(
            [
                *("mpirun", *root, "-bind-to", "none", "-map-by", "slot"),
                *("--mca", "btl_vader_single_copy_mechanism", "none"),
                *("-np", "2", "-H", "localhost:2"),
                *(sys.executable, ROOT / "tests" / "learning" / "one_learner_job.py"),
                *(json.dumps(flags), str(UPDATES), tmp_path),
            ],
            env={"OMP_NUM_THREADS": "1"},
        )
        assert process.wait(timeout=200) == 0
        return [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]

    return run


@pytest.fixture
def one_rank(tmp_path):
    def run(flags: dict) -> dict:
        logdir = tmp_path / "alone"
        logdir.mkdir(exist_ok=True)
        torch.set_num_threads(1)
        return job.learn(Group(), flags, UPDATES, logdir)

    return run


def compare(ranks: list[dict], alone: dict, rtol: float, atol: float) -> None:
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert torch.equal(ranks[0]["gradients"], ranks[1]["gradients"])
    assert ranks[0]["counts"] == ranks[1]["counts"] == alone["counts"]
    scale = alone["gradients"].abs().max()
    torch.testing.assert_close(
        ranks[0]["gradients"] / scale, alone["gradients"] / scale, rtol=rtol, atol=atol
    )
    torch.testing.assert_close(ranks[0]["weights"], alone["weights"], rtol=rtol, atol=atol)
    assert ranks[0]["kept"].keys() == alone["kept"].keys()
    for name, tensor in alone["kept"].items():
        assert torch.equal(ranks[0]["kept"][name], ranks[1]["kept"][name]), name
        torch.testing.assert_close(ranks[0]["kept"][name], tensor, rtol=rtol, atol=atol)


WHOLE = {"batch_size": job.UNROLLS}
APPO = {
    **WHOLE,
    "algorithm": "appo",
    "num_minibatches": 2,
    "batch_reuse": 3,
    "learning_rate": 0.01,
    "entropy_cost": 0.01,
    "baseline_cost": 1.0,
}
CASES = {
    "plain": WHOLE,
    "clipped": {**WHOLE, "gradients_clipping": 1.0},
    "virtual batch": {
        "batch_size": job.UNROLLS // 2,
        "virtual_batch_size": job.UNROLLS,
        "gradients_clipping": 1.0,
    },
    "LSTM": {**WHOLE, "agent_name": "MLPLSTMAgent", "gradients_clipping": 1.0},
    "images and LSTM": {
        **WHOLE,
        "agent_name": "ShallowConvLSTMAgent",
        "level_name": "PongNoFrameskip-v4",
        "gradients_clipping": 40.0,
    },
    "momentum, falling entropy, reuse": {
        **WHOLE,
        "momentum": 0.9,
        "entropy_cost": 0.1,
        "entropy_decay": True,
        "batch_reuse": 2,
    },
    "minibatches": {**WHOLE, "num_minibatches": 4},
    "observations normalized": {**WHOLE, "normalize_observations": True},
    "appo": {**APPO, "gradients_clipping": 1.0},
    "appo, observations and values normalized, target network": {
        **APPO,
        "normalize_observations": True,
        "normalize_values": True,
        "reward_clipping": "none",
        "target_network": 8,
    },
    "appo, images less the mean picture, LSTM": {
        **APPO,
        "agent_name": "ShallowConvLSTMAgent",
        "level_name": "PongNoFrameskip-v4",
        "normalize_observations": True,
        "gradients_clipping": 1.0,
        # Rounding of the mean picture grows with each step of a network of this size, and must not
        # move a ratio across the clipping's edge, where the gradient jumps: small steps, no edge.
        # The cases above have both.
        "ratio_clipping": 1000.0,
        "target_kl": 0.0,
        "learning_rate": 1e-6,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_of_halves_make_the_update_of_one(two_ranks, one_rank, name):
    ranks, alone = two_ranks(CASES[name]), one_rank(CASES[name])
    compare(ranks, alone, rtol=1e-4, atol=1e-5)
    # The test can fail: half of the gradient is another one, unless it is clipped.
    if "gradients_clipping" not in CASES[name]:
        assert not torch.allclose(ranks[0]["gradients"], alone["gradients"] / 2, 1e-2, 1e-2)


@pytest.mark.parametrize("name", ["clipped", "virtual batch", "LSTM", "appo"])
def test_so_they_do_with_float16_between_them(two_ranks, one_rank, name):
    ranks = two_ranks({**CASES[name], "gradients_precision": "float16"})
    compare(ranks, one_rank(CASES[name]), rtol=1e-2, atol=2e-3)


def test_the_originals_way_is_the_average(two_ranks, one_rank):
    ranks = two_ranks({**WHOLE, "gradients_reduction": "average"})
    alone = one_rank(WHOLE)
    torch.testing.assert_close(
        ranks[0]["gradients"][0], alone["gradients"][0] / 2, rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(ranks[0]["weights"], alone["weights"], 1e-3, 1e-4)


@pytest.mark.parametrize("reduction", ["auto", "average"])
def test_a_gradient_near_float16s_largest_number_survives_the_adding_up(
    two_ranks, one_rank, reduction
):
    flags = {**WHOLE, "baseline_cost": 1.0}
    flags["baseline_cost"] = 100_000 / float(one_rank(flags)["gradients"][0].abs().max())
    # Each rank's share of it can be written as float16, and what they add up to cannot.
    assert 70_000 < one_rank(flags)["gradients"][0].abs().max() < 120_000
    half = {"gradients_precision": "float16", "gradients_reduction": reduction}
    ranks = two_ranks({**flags, **half, "gradients_clipping": 40.0})
    assert torch.isfinite(ranks[0]["weights"]).all()
    assert ranks[0]["gradients"].norm(dim=1).numpy() == pytest.approx(np.full(UPDATES, 40.0), 1e-3)


def test_losses_and_norms_are_of_all_ranks(two_ranks, one_rank):
    from impala_torch.report import together

    flags = {**WHOLE, "gradients_clipping": 40.0}
    told = json.loads(two_ranks(flags)[0]["metrics"])
    (alone,) = json.loads(one_rank(flags)["metrics"])
    for update in range(UPDATES):
        everyone = [{"metrics": rank[update]} for rank in told]
        assert together.metrics_of(everyone, "sum") == pytest.approx(
            alone[update], rel=1e-4, abs=1e-4
        )


@pytest.mark.parametrize("name", ["clipped", "virtual batch", *list(CASES)[-3:-1]])
def test_an_update_that_is_not_finite_is_made_by_none(two_ranks, one_rank, name):
    """Only the last rank's unrolls have the reward: the others learn of it by the gradient."""
    flags = {**CASES[name], "reward_clipping": "none", "spoilt": {"2": "inf", "5": "nan"}}
    ranks, alone = two_ranks(flags), one_rank(flags)
    updates, _, skipped = alone["counts"]
    assert skipped == 2 * flags.get("batch_reuse", 1) * flags.get("num_minibatches", 1)
    assert updates + skipped == UPDATES * skipped // 2
    assert ranks[0]["counts"] == ranks[1]["counts"] == alone["counts"]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert torch.isfinite(alone["weights"]).all()
    torch.testing.assert_close(ranks[0]["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    for kept in (ranks[0]["kept"], ranks[1]["kept"], alone["kept"]):
        assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_gradient_that_float16_cannot_hold_is_skipped_by_all(two_ranks):
    half = {"gradients_precision": "float16", "reward_clipping": "none"}
    ranks = two_ranks({**WHOLE, **half, "spoilt": {"2": "1e9"}})
    assert [rank["counts"][2] for rank in ranks] == [1, 1]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert torch.isfinite(ranks[0]["weights"]).all()
