"""A finished agent leaves its run: what it plays is the same, and nothing else goes along."""

import subprocess
import sys

import pytest
import torch

from impala_torch import agents, environments
from impala_torch.evaluation import test_mode
from impala_torch.evaluation.export import export
from impala_torch.flags.errors import UserError
from impala_torch.learning.group import Group
from impala_torch.learning.optimizers import TFRMSProp
from impala_torch.learning.training_state import TrainingState
from tests.conftest import ROOT
from tests.evaluation.test_evaluate import CART, test_config


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint, optimizer and all."""
    config = test_config(tmp_path / "run", key_file="/home/me/secret.key", **CART)
    spec = environments.environment_spec(config.level_name)
    torch.manual_seed(3)
    agent = agents.make_agent(config.agent_name, spec)
    state = TrainingState(agent, TFRMSProp(agent.parameters()))
    state.frames = 1234
    (tmp_path / "run").mkdir()
    state.save(tmp_path / "run", config)
    return config


def test_the_exported_agent_plays_the_same_games(run, tmp_path):
    out = tmp_path / "agent.pt"
    size = export(tmp_path / "run", out)
    (whole,) = (tmp_path / "run").glob("checkpoint-*.pt")
    assert size == out.stat().st_size < 0.6 * whole.stat().st_size
    assert b"secret" not in out.read_bytes()
    of_run = test_mode.run(run)
    of_export = test_mode.run(run.replace(logdir="", checkpoint=str(out)))
    assert of_run == of_export
    assert (tmp_path / "evaluation.json").exists()


def test_training_does_not_go_on_from_it(run, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    export(tmp_path / "run", folder / "checkpoint-1234.pt")
    spec = environments.environment_spec(run.level_name)
    agent = agents.make_agent(run.agent_name, spec)
    with pytest.raises(UserError, match="does not fit"):
        TrainingState(agent, TFRMSProp(agent.parameters())).restore(folder, run, Group())


def test_mistakes_are_told(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "impala_torch.evaluation.export", tmp_path / "none", "x.pt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'} holds no checkpoint\n"
