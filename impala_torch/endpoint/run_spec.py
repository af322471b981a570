"""What a learner and its actors must agree on, told and compared when an actor says hello."""

import dataclasses
from typing import Any

from impala_torch.flags.config import Config
from impala_torch.structures import EnvironmentSpec, ObservationSpec


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What a learner and its actors must agree on for unrolls to mean the same to both."""

    agent_name: str
    level_name: str
    num_action_repeats: int
    unroll_length: int
    environment: EnvironmentSpec
    state_size: int

    def to_header(self) -> dict[str, Any]:
        observation = self.environment.observation
        return {
            "agent_name": self.agent_name,
            "level_name": self.level_name,
            "num_action_repeats": self.num_action_repeats,
            "unroll_length": self.unroll_length,
            "observation": [list(observation.shape), observation.dtype, observation.stack],
            "num_actions": self.environment.num_actions,
            "state_size": self.state_size,
        }

    def difference(self, header: Any) -> str:
        """Says in words how another side's ``to_header`` differs; empty if it does not."""
        if not isinstance(header, dict):
            return "its specification is not a map"
        ours = self.to_header()
        return "; ".join(
            f"its {name} is {header.get(name)!r}, the learner's {value!r}"
            for name, value in ours.items()
            if header.get(name) != value
        )


def spec_of(
    agent_name: str,
    level_name: str,
    num_action_repeats: int,
    unroll_length: int,
    environment: EnvironmentSpec,
    state_size: int,
) -> RunSpec:
    """A RunSpec with plain types, so that both sides' headers compare equal."""
    observation = environment.observation
    plain = ObservationSpec(
        tuple(int(n) for n in observation.shape), str(observation.dtype), int(observation.stack)
    )
    return RunSpec(
        agent_name,
        level_name,
        int(num_action_repeats),
        int(unroll_length),
        EnvironmentSpec(plain, int(environment.num_actions)),
        int(state_size),
    )


def run_spec_of(
    config: Config, environment: EnvironmentSpec, num_action_repeats: int, state_size: int
) -> RunSpec:
    """The RunSpec of flags; learner and actors make it here.

    Args:
      config: the flags.
      environment: of the level that they name.
      num_action_repeats: environment frames per agent step, of the level.
      state_size: of the agent that they name.
    """
    return spec_of(
        config.agent_name,
        config.level_name,
        num_action_repeats,
        config.unroll_length,
        environment,
        state_size,
    )
