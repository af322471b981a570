"""The agent zoo, one file a family, and the user's own agents: ``make_agent(name, spec)``."""

import torch

from impala_torch.agents import custom
from impala_torch.agents.base import Agent, image_shape
from impala_torch.agents.mlp import MLPAgent, MLPLSTMAgent
from impala_torch.agents.resnet import ResNetAgent, ResNetLSTMAgent
from impala_torch.agents.shallow_conv import ShallowConvLSTMAgent, ShallowConvNetAgent
from impala_torch.agents.simple_conv import SimpleConvNetAgent
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.structures import EnvironmentSpec

__all__ = ["ZOO", "Agent", "agent_factory", "make_agent", "make_for"]

ZOO: dict[str, type[Agent]] = {
    agent.__name__: agent
    for agent in (
        SimpleConvNetAgent,
        ShallowConvNetAgent,
        ShallowConvLSTMAgent,
        ResNetAgent,
        ResNetLSTMAgent,
        MLPAgent,
        MLPLSTMAgent,
    )
}


def agent_factory(name: str) -> type[Agent]:
    """The class of a name: of the zoo, or ``mypackage.mymodule:MyAgent``.

    Raises:
      UserError: it is not in the zoo, which is listed, or there is no such class.
    """
    if ":" in name:
        return custom.find(name)
    if name not in ZOO:
        raise UserError(
            f"--agent_name={name} is not in the zoo: {', '.join(ZOO)}; an agent of your own is "
            f"{custom.FORM}"
        )
    return ZOO[name]


def make_agent(name: str, spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> Agent:
    """An agent for a level, on the CPU.

    Raises:
      UserError: the name is unknown, or the agent does not fit the level's observation.
    """
    if ":" in name:
        return custom.make(name, spec, dtype)
    factory = agent_factory(name)
    image = len(spec.observation.shape) > 1
    if factory.image != image:
        fitting = [other for other, agent in ZOO.items() if agent.image == image]
        kind = "images" if image else "vectors"
        raise UserError(
            f"--agent_name={name} does not fit the level, whose observations are {kind}: use "
            f"{', '.join(fitting)}"
        )
    try:
        return factory(spec, dtype)
    except RuntimeError as error:
        if not image:
            raise
        _, height, width = image_shape(spec)
        raise UserError(
            f"--agent_name={name} cannot see images as small as {width}x{height}: raise --width "
            "and --height"
        ) from error


def make_for(config: Config, spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> Agent:
    """The agent of the flags for a level, on the CPU.

    Raises:
      UserError: as ``make_agent``; or it cannot normalize what the flags want it to.
    """
    agent = make_agent(config.agent_name, spec, dtype)
    wanted = {
        "normalize_observations": lambda: agent.normalize_observations(spec),
        "normalize_values": agent.normalize_values,
    }
    for flag, normalize in wanted.items():
        if getattr(config, flag):
            try:
                normalize()
            except ValueError as error:
                raise UserError(f"--{flag}: --agent_name={config.agent_name}: {error}") from error
    return agent
