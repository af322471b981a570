"""An agent in E environments: sees, acts, keeps its state."""

import functools
import logging

import numpy as np
import torch

from impala_torch import environments
from impala_torch.agents import make_for, precision
from impala_torch.agents.base import Agent
from impala_torch.agents.stacking import FrameStacker
from impala_torch.environments.base import Environment
from impala_torch.flags.config import Config
from impala_torch.structures import AgentInput, AgentOutput, EnvOutput

log = logging.getLogger(__name__)


def make_acting_agent(config: Config, tried: bool = False) -> Agent:
    """The agent of the flags, for acting on the CPU. Raises UserError where it does not fit.

    Args:
      config: the flags.
      tried: whether --precision=auto is what is faster in --num_envs environments, or by the
        processor alone, which is the same each time.
    """
    spec = environments.spec_for(config)
    make = functools.partial(make_for, config, spec)
    if not tried:
        return make(precision.resolve(config.precision, "cpu")).for_acting()
    dtype = precision.choose(config.precision, "cpu", make, spec, config.num_envs, learning=False)
    log.info("acting in %s", precision.name_of(dtype))
    return make(dtype).for_acting()


class Player:
    """An agent in E environments: what acting, testing and unrolls have in common.

    After each call, ``input`` is what the agent saw last, ``state`` its state after that, and
    ``state_before`` its state before.
    """

    def __init__(self, agent: Agent, environment: Environment, seed: int, greedy: bool = False):
        spec = environment.spec.observation
        self.agent = agent
        self.environment = environment
        self._greedy = greedy
        self._generator = torch.Generator().manual_seed(seed)
        dtype = torch.uint8 if spec.dtype == "uint8" else torch.float32
        self.stacker = FrameStacker(environment.num_envs, spec.shape, dtype, spec.stack)
        self._squeeze = spec.stack == 1
        self.state = self.state_before = agent.initial_state(environment.num_envs)
        self.last_action = torch.zeros(environment.num_envs, dtype=torch.int64)

    def see(self, output: EnvOutput) -> AgentOutput:
        """Runs the agent on what the environments returned; [E, ...] outputs."""
        done = torch.from_numpy(output.done)
        observation = self.stacker.push(torch.from_numpy(output.observation), done)
        self.state_before = self.state
        agent_output, self.state = self._forward(observation, output.reward, done)
        return agent_output

    def act(self, agent_output: AgentOutput) -> torch.Tensor:
        """Samples the behaviour policy's actions, [E] int64."""
        logits = agent_output.policy_logits
        if self._greedy:
            self.last_action = logits.argmax(dim=-1)
        else:
            # The largest logit plus Gumbel noise is a sample of the softmax; torch.multinomial's
            # checks take longer than the draw.
            noise = torch.empty_like(logits).exponential_(generator=self._generator).log_()
            self.last_action = (logits - noise).argmax(dim=-1)
        return self.last_action

    def value_of(self, output: EnvOutput) -> np.ndarray:
        """The baseline [E] of ``output.final_observation``, seen in the episodes that ended."""
        observation = self.stacker.peek(torch.from_numpy(output.final_observation))
        same_episode = torch.zeros(len(output.done), dtype=torch.bool)
        agent_output, _ = self._forward(observation, output.reward, same_episode)
        return agent_output.baseline.numpy()

    def _forward(
        self, observation: torch.Tensor, reward: np.ndarray, done: torch.Tensor
    ) -> tuple[AgentOutput, torch.Tensor]:
        if self._squeeze:
            observation = observation[:, 0]
        inputs = AgentInput(
            observation.unsqueeze(0),
            torch.from_numpy(reward).unsqueeze(0),
            done.unsqueeze(0),
            self.last_action.unsqueeze(0),
        )
        with torch.inference_mode():
            output, state = self.agent(inputs, self.state)
        return AgentOutput(output.policy_logits[0], output.baseline[0]), state
