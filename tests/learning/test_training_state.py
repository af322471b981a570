"""What a run goes on with: weights, the optimizer's moments, and what the algorithm keeps."""

import pytest
import torch

from impala_torch.agents import make_for
from impala_torch.algorithms import ALGORITHMS
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning import optimizers
from impala_torch.learning.group import Group
from impala_torch.learning.training_state import TrainingState
from impala_torch.structures import EnvironmentSpec, ObservationSpec

SPEC = EnvironmentSpec(ObservationSpec((3,), "float32", 1), 2)
CONFIG = Config(
    algorithm="appo",
    agent_name="MLPAgent",
    level_name="L",
    epsilon=1e-5,
    normalize_observations=True,
    normalize_values=True,
    target_network=4,
)


def state_of(config: Config) -> TrainingState:
    agent = make_for(config, SPEC)
    algorithm = ALGORITHMS[config.algorithm](config, agent, lambda unroll, network: None, Group())
    optimizer = optimizers.make(algorithm.optimizer, list(agent.parameters()), config)
    return TrainingState(agent, optimizer, algorithm.kept())


def everything(state: TrainingState) -> dict[str, torch.Tensor]:
    found = {**state.agent.state_dict(), **state.kept}
    for index, entry in state.optimizer.state_dict()["state"].items():
        found |= {f"{index}.{name}": tensor for name, tensor in entry.items()}
    return found


def saved(tmp_path, config: Config = CONFIG) -> TrainingState:
    """A checkpoint in which no two numbers are alike."""
    state = state_of(config)
    with torch.no_grad():
        for number, tensor in enumerate(everything(state).values()):
            tensor.copy_(torch.rand_like(tensor) + number)
    state.updates, state.frames = 7, 70
    state.save(tmp_path, config)
    return state


def test_all_of_it_goes_on(tmp_path):
    before, after = saved(tmp_path), state_of(CONFIG)
    names = set(everything(after))
    assert {"learning_rate_scale", "target.policy.weight", "vector_normalizer.mean"} <= names
    assert {"value_scale.deviation", "0.exp_avg", "0.step"} <= names
    after.restore(tmp_path, CONFIG, Group())
    assert (after.updates, after.frames) == (7, 70)
    for name, tensor in everything(before).items():
        assert torch.equal(tensor, everything(after)[name]), name


def test_a_flag_that_is_new_begins_as_at_a_start(tmp_path):
    saved(tmp_path, CONFIG.replace(target_network=0))
    after = state_of(CONFIG)
    due = after.kept["target.steps"].clone()
    after.restore(tmp_path, CONFIG, Group())
    assert torch.equal(after.kept["target.steps"], due)  # it is copied before it is used
    assert after.kept["learning_rate_scale"] != 1


@pytest.mark.parametrize("change", [{"algorithm": "impala"}, {"normalize_observations": False}])
def test_what_does_not_fit_is_told(tmp_path, change):
    saved(tmp_path)
    flags = {"target_network": 0, "normalize_values": False} if "algorithm" in change else {}
    config = CONFIG.replace(**flags, **change)
    (name,) = change
    with pytest.raises(UserError, match=f"--{'normalize_values' if flags else name}="):
        state_of(config).restore(tmp_path, config, Group())
