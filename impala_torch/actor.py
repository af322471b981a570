"""The actor: pulls weights, plays E environments for an unroll, pushes the unroll."""

import logging
from typing import NamedTuple

import numpy as np
import torch

from impala_torch import environments
from impala_torch.agents import make_agent, precision, weights
from impala_torch.agents.base import Agent
from impala_torch.agents.stacking import FrameStacker
from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.client import EndpointClient, RunEnded
from impala_torch.endpoint.messages import RunSpec, UnrollCodec
from impala_torch.environments.base import Environment
from impala_torch.flags.config import Config
from impala_torch.structures import (
    AgentInput,
    AgentOutput,
    EnvOutput,
    EpisodeResult,
    Unroll,
    empty_unroll,
)

log = logging.getLogger(__name__)


class Seeds(NamedTuple):
    """What an actor derives its streams from."""

    environment: int
    actions: int


def seeds_of(seed: int, worker_set: int, task: int) -> Seeds:
    """Different for each actor of a run, also across worker sets; the same at each start."""
    states = np.random.SeedSequence([seed, worker_set, task]).generate_state(2)
    return Seeds(int(states[0] >> 1), int(states[1]))


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


class UnrollCollector:
    """Plays unrolls of T steps in E environments, by the convention of ``structures``."""

    def __init__(self, player: Player, unroll_length: int) -> None:
        self._player = player
        self._length = unroll_length
        spec = player.environment.spec
        self._stack = spec.observation.stack
        unroll = empty_unroll(
            spec, unroll_length, player.agent.state_size, player.environment.num_envs
        )
        # By environment in memory, as it is compressed: else that would copy it first.
        by_env = np.ascontiguousarray(unroll.observation.swapaxes(0, 1))
        self._unroll = unroll._replace(observation=by_env.swapaxes(0, 1))
        self.episodes: list[EpisodeResult] = []
        self._started = False

    def collect(self, weights_version: int) -> Unroll:
        """The next unroll; its arrays are overwritten by the next call.

        Args:
          weights_version: of the weights that the player's agent has now. Row 0 was computed
            with those of the call before.
        """
        unroll, player = self._unroll, self._player
        self.episodes = []
        if self._started:
            self._repeat_last_row()
        else:
            unroll.initial_action[:] = 0
            self._see(0, player.environment.reset())
            self._started = True
        unroll.weights_version[:] = weights_version
        for t in range(1, self._length + 1):
            output = player.environment.step(unroll.action[t - 1])
            self.episodes.extend(output.episodes)
            self._see(t, output)
        return unroll

    def _see(self, t: int, output: EnvOutput) -> None:
        unroll, player = self._unroll, self._player
        unroll.final_value[t] = 0
        if output.final_observation is not None:
            unroll.final_value[t] = np.where(output.truncated, player.value_of(output), 0)
        agent_output = player.see(output)
        unroll.observation[t + self._stack - 1] = output.observation
        unroll.reward[t] = output.reward
        unroll.done[t] = output.done
        unroll.policy_logits[t] = agent_output.policy_logits.numpy()
        unroll.baseline[t] = agent_output.baseline.numpy()
        unroll.action[t] = player.act(agent_output).numpy()
        if t == 0:
            unroll.agent_state[:] = player.state_before.numpy()

    def _repeat_last_row(self) -> None:
        """Makes row 0 of the last row; the frames before it are those of its stack."""
        unroll, player = self._unroll, self._player
        unroll.initial_action[:] = unroll.action[-2]
        for rows in (
            unroll.reward,
            unroll.done,
            unroll.final_value,
            unroll.action,
            unroll.policy_logits,
            unroll.baseline,
        ):
            rows[0] = rows[-1]
        unroll.observation[: self._stack] = player.stacker.frames.numpy()
        unroll.agent_state[:] = player.state_before.numpy()


def run(config: Config) -> None:
    """Acts for the learner at --learner_host until it says stop.

    Raises:
      UserError, client.Refused, client.LearnerGone: see there.
    """
    torch.set_num_threads(config.actor_threads or 1)
    agent = make_acting_agent(config)
    run_spec = run_spec_of(config, agent)
    client = EndpointClient(
        config.learner_host,
        run_spec,
        config.task,
        config.num_envs,
        keys=None if config.relay else curve.for_address(config.learner_host, config.key_file),
        relay=curve.expand(config.relay),
        timeout_secs=config.learner_timeout,
    )
    try:
        welcome = client.connect()
        log.info("welcomed by the learner at %s (run %s)", config.learner_host, welcome.run_id)
        seeds = seeds_of(config.seed, welcome.worker_set, config.task)
        environment = environments.make_for(config, seeds.environment)
        try:
            player = Player(agent, environment, seeds.actions)
            _act(client, agent, UnrollCollector(player, config.unroll_length), run_spec)
        finally:
            environment.close()
    except RunEnded:
        log.info("the learner says that the run has ended")
    finally:
        client.close()


def _act(
    client: EndpointClient, agent: Agent, collector: UnrollCollector, run_spec: RunSpec
) -> None:
    codec = UnrollCodec(run_spec)
    version = -1
    while True:
        newer = client.pull(version)
        if newer is not None:
            version, flat = newer
            weights.unpack(agent, flat, client.weights_dtype)
        unroll = collector.collect(max(version, 0))
        client.push(codec.encode(unroll), messages.encode_episodes(collector.episodes))


def make_acting_agent(config: Config) -> Agent:
    """The agent of the flags, for acting on the CPU. Raises UserError where it does not fit."""
    dtype = precision.resolve(config.precision, "cpu")
    return make_agent(config.agent_name, environments.spec_for(config), dtype).for_acting()


def run_spec_of(config: Config, agent: Agent) -> RunSpec:
    """What a learner and its actors compare; both make it here."""
    return messages.spec_of(
        config.agent_name,
        config.level_name,
        environments.action_repeats(config.level_name, config.num_action_repeats),
        config.unroll_length,
        environments.spec_for(config),
        agent.state_size,
    )
