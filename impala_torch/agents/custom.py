"""Agents of the user's own: ``mypackage.mymodule:MyAgent``, and what any agent must keep to."""

from typing import Any

import torch

from impala_torch.agents.base import Agent, image_shape
from impala_torch.flags import plugins
from impala_torch.flags.errors import UserError
from impala_torch.structures import AgentInput, EnvironmentSpec

FORM = "mypackage.mymodule:MyAgent"
_ROWS, _BATCH = 3, 2  # of the trial


def find(name: str) -> type[Agent]:
    """The class that ``module:Class`` names.

    Raises:
      UserError: no such module or class, it is no Agent, or its module cannot be imported.
    """
    _, class_name = plugins.split("agent_name", name, FORM)
    module = plugins.import_module("agent_name", name)
    found = getattr(module, class_name, None)
    if found is None:
        raise UserError(f"--agent_name={name}: {_where(module)} has no '{class_name}'")
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise UserError(
            f"--agent_name={name}: '{class_name}' of {_where(module)} is no subclass of "
            "impala_torch.agents.Agent"
        )
    return found


def make(name: str, spec: EnvironmentSpec, dtype: torch.dtype) -> Agent:
    """A user's agent for a level, tried once on random observations.

    Raises:
      UserError: as ``find``; or it is for other observations, cannot be made, or its forward
        does not return what an agent's must.
    """
    factory = find(name)
    is_image = len(spec.observation.shape) > 1
    if factory.image != is_image:
        kinds = ("vectors", "images")
        raise UserError(
            f"--agent_name={name} does not fit the level, whose observations are "
            f"{kinds[is_image]}: its class says image = {factory.image}"
        )
    with plugins.told("agent_name", name, "cannot be made"):
        agent = factory(spec, dtype)
    trial = plugins.told("agent_name", name, "fails on a trial")
    with trial, torch.random.fork_rng(devices=[]), torch.no_grad():  # no random numbers of the run
        _check(name, agent, spec)
    return agent


def _check(name: str, agent: Agent, spec: EnvironmentSpec) -> None:
    """Raises UserError where shapes and types are not those of ``Agent.forward``."""
    if type(agent).forward is Agent.forward and not hasattr(agent, "policy"):
        raise UserError(f"--agent_name={name}: its __init__ must end with self.add_heads(features)")
    inputs, state = _random_inputs(spec), agent.initial_state(_BATCH)
    size = (_BATCH, agent.state_size)
    _expect(name, "initial_state", state, size)
    output, after = agent(inputs, state)
    _expect(name, "the state that forward returns", after, size)
    _expect(name, "policy_logits", output.policy_logits, (_ROWS, _BATCH, spec.num_actions))
    _expect(name, "baseline", output.baseline, (_ROWS, _BATCH))
    if agent.dtype != torch.float32:
        return  # what is rounded differs a little; --precision=float32 has been tried by then
    rows = [AgentInput(*(field[t : t + 1] for field in inputs)) for t in range(_ROWS)]
    values = []
    for row in rows:
        one, state = agent(row, state)
        values.append(one.baseline)
    afresh, _ = agent(rows[0], torch.randn(size))  # done is true in all of row 0
    if not _same(afresh.baseline, values[0]):
        raise UserError(
            f"--agent_name={name}: its forward must set the state back where done is true, before "
            "that row"
        )
    if not _same(torch.cat(values), output.baseline):
        raise UserError(
            f"--agent_name={name}: its baseline over {_ROWS} rows differs from the same rows one "
            "by one, so learners would not see what actors saw (batch norm or dropout?)"
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _expect(name: str, what: str, got: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(got, torch.Tensor) or got.shape != shape or got.dtype != torch.float32:
        is_tensor = isinstance(got, torch.Tensor)
        said = f"{got.dtype} {list(got.shape)}" if is_tensor else type(got).__name__
        raise UserError(
            f"--agent_name={name}: {what} must be torch.float32 {list(shape)}, and is {said}"
        )


def _random_inputs(spec: EnvironmentSpec) -> AgentInput:
    """Rows as an agent may see them, an episode's end among them."""
    if spec.observation.dtype == "uint8":
        shape = (_ROWS, _BATCH, *image_shape(spec))
        observation = torch.randint(0, 256, shape, dtype=torch.uint8)
    else:
        observation = torch.randn(_ROWS, _BATCH, *spec.observation.shape)
    return AgentInput(
        observation,
        reward=torch.randn(_ROWS, _BATCH),
        done=torch.tensor([[True] * _BATCH, [False] * _BATCH, [True] + [False] * (_BATCH - 1)]),
        last_action=torch.randint(0, spec.num_actions, (_ROWS, _BATCH)),
    )


def _where(module: Any) -> str:
    return getattr(module, "__file__", None) or f"the package '{module.__name__}'"
