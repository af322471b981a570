"""What a learner and its actors must agree on, told and compared when an actor says hello."""

import dataclasses
from typing import Any

from impala_torch.endpoint.messages import quoted
from impala_torch.flags.config import Config
from impala_torch.structures import EnvironmentSpec, LevelOptions


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What a learner and its actors must agree on for unrolls to mean the same to both."""

    agent_name: str
    level: LevelOptions  # with a number of repeats
    unroll_length: int
    environment: EnvironmentSpec
    state_size: int

    def to_header(self) -> dict[str, Any]:
        """Plain values by name, flags by theirs, so that both sides' compare equal."""
        observation = self.environment.observation
        shape = [int(size) for size in observation.shape]
        return {
            "agent_name": self.agent_name,
            **self.level._asdict(),
            "unroll_length": self.unroll_length,
            "observation": [shape, str(observation.dtype), int(observation.stack)],
            "num_actions": int(self.environment.num_actions),
            "state_size": int(self.state_size),
        }

    def difference(self, header: Any) -> str:
        """Says in words how another side's ``to_header`` differs; empty if it does not."""
        if not isinstance(header, dict):
            return "its specification is not a map"
        ours = self.to_header()
        return "; ".join(
            f"its {name} is {quoted(header.get(name))}, the learner's {value!r}"
            for name, value in ours.items()
            if header.get(name) != value
        )


def run_spec_of(
    config: Config, level: LevelOptions, environment: EnvironmentSpec, state_size: int
) -> RunSpec:
    """The RunSpec of flags; learner and actors make it here.

    Args:
      config: the flags.
      level: that they name, with a number of repeats.
      environment: of the level.
      state_size: of the agent that they name.
    """
    return RunSpec(config.agent_name, level, config.unroll_length, environment, state_size)
