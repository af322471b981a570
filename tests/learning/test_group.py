"""The learner group with real mpirun and Horovod, two ranks."""

import json
import os
import shutil
import sys

import pytest
import torch

from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning.group import Group, join
from impala_torch.learning.training_state import TrainingState
from tests import group_job
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def mpirun(start, tmp_path):
    """Runs group_job.py with two ranks; returns what they told, by rank."""

    def run(what: str) -> list[dict]:
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        job = start(
            [
                *("mpirun", *root, "-bind-to", "none", "-map-by", "slot"),
                *("--mca", "btl_vader_single_copy_mechanism", "none"),
                *("-np", "2", "-H", "localhost:2"),
                *(sys.executable, ROOT / "tests" / "group_job.py", what, tmp_path),
            ],
            env={"OMP_NUM_THREADS": "1"},
        )
        assert job.wait(timeout=200) == 0
        return [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]

    return run


def alone(seed_of_update, updates=100) -> torch.Tensor:
    return group_job.train(Group(), seed_of_update, updates)


def test_ranks_with_the_same_data_learn_what_one_rank_learns(mpirun, tmp_path):
    ranks = mpirun("same")
    assert ranks[0]["size"] == 2
    assert ranks[0]["sha256"] == ranks[1]["sha256"]
    got = torch.load(tmp_path / "weights-0.pt", weights_only=True)
    expected = alone(group_job.random_batch)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, alone(group_job.random_batch, updates=99), 1e-4, 1e-5)


def test_after_100_updates_of_different_data_ranks_are_bit_equal(mpirun, tmp_path):
    ranks = mpirun("different")
    assert ranks[0]["sha256"] == ranks[1]["sha256"]
    got = torch.load(tmp_path / "weights-0.pt", weights_only=True)
    assert not torch.allclose(got, alone(group_job.random_batch), 1e-3, 1e-3)  # rank 1's data too


def test_gradients_sent_as_float16_differ_by_their_rounding(mpirun, tmp_path):
    mpirun("different")
    whole = torch.load(tmp_path / "weights-0.pt", weights_only=True)
    ranks = mpirun("half")
    half = torch.load(tmp_path / "weights-0.pt", weights_only=True)
    assert ranks[0]["sha256"] == ranks[1]["sha256"]
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0.005)


def test_gradients_added_up_over_parts_are_those_of_the_whole_batch(mpirun, tmp_path):
    mpirun("different")
    whole = [torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1)]
    mpirun("split")
    split = [torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(split[0], split[1])
    torch.testing.assert_close(split[0], whole[0], rtol=1e-4, atol=1e-5)


def test_ranks_go_on_from_rank_0s_checkpoint_with_their_own_hyperparameters(mpirun, tmp_path):
    agent = group_job.make_agent("MLPAgent", group_job.SPEC)
    optimizer = group_job.TFRMSProp(agent.parameters(), momentum=0.0, epsilon=0.1)
    for entry in optimizer.state.values():
        entry["mean_square"].fill_(0.25)
    state = TrainingState(agent, optimizer)
    state.frames = 1234
    (tmp_path / "run-0").mkdir()
    state.save(tmp_path / "run-0", Config(agent_name="MLPAgent"))
    ranks = mpirun("resume")
    for told in ranks:
        assert told["frames"] == 1234
        assert told["mean"] == 0.25
        assert told["epsilon"] == 0.01
        assert told["moments"] == 2 * len(list(agent.parameters()))  # mean squares and momenta


def test_ranks_agree_gather_and_notice_differences(mpirun):
    ranks = mpirun("agree")
    for told in ranks:
        assert told["agreed"] == [1, 5, 0]
        assert told["gathered"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x" * 10}]
        assert "learner 1 has batch_size 3 and learner 0 2" in told["error"]


def test_a_group_of_one_needs_no_horovod(run_python):
    code = (
        "import sys; from impala_torch.learning import group; g = group.join();"
        "assert g.size == 1 and g.agree([3]) == [3] and g.gather('x') == ['x'];"
        "assert not {'horovod', 'mpi4py'} & set(sys.modules)"
    )
    assert run_python("-c", code).returncode == 0


def test_several_learners_without_horovod_are_told(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(UserError, match=r"Horovod and mpi4py.*docker/setup.sh"):
        join()


def test_mpirun_is_here():
    assert shutil.which("mpirun"), "docker/setup.sh test installs it"
