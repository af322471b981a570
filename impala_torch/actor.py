"""The actor: pulls weights, plays E environments for an unroll, pushes the unroll."""

import logging

import torch

from impala_torch import environments
from impala_torch.acting.player import Player, make_acting_agent
from impala_torch.acting.seeds import seeds_of
from impala_torch.acting.unrolls import UnrollCollector
from impala_torch.agents import weights
from impala_torch.agents.base import Agent
from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import local_sockets, messages
from impala_torch.endpoint.client import EndpointClient, RunEnded
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.run_spec import RunSpec, run_spec_of
from impala_torch.flags.config import Config
from impala_torch.flags.errors import EnvironmentFault, NotMade
from impala_torch.flags.shares import shared_out

log = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Acts for the learner at --learner_host until it says stop.

    Raises:
      UserError, client.Refused, client.LearnerGone: see there.
      EnvironmentFault: of an environment's code, also while it is made. It was made before the run
        was started, so what hinders it now may pass.
    """
    try:
        _run(config)
    except NotMade as error:
        raise EnvironmentFault(str(error)) from error.__cause__


def _run(config: Config) -> None:
    config = shared_out(config, 1, None)
    torch.set_num_threads(config.actor_threads or 1)
    agent, level = make_acting_agent(config, tried=True), environments.level_of(config)
    spec = environments.environment_spec(level)
    run_spec = run_spec_of(config, level, spec, agent.state_size)
    client = EndpointClient(
        config.learner_host,
        run_spec,
        config.task,
        config.num_envs,
        keys=None if config.relay else curve.for_address(config.learner_host, config.key_file),
        relay=local_sockets.expand(config.relay),
        timeout_secs=config.learner_timeout,
    )
    try:
        welcome = client.connect()
        log.info("welcomed by the learner at %s (run %s)", config.learner_host, welcome.run_id)
        seeds = seeds_of(config.seed, welcome.worker_set, config.task, welcome.start)
        with client.playing():  # many may take long to be made
            environment = environments.make_for(config, seeds.environment)
        with environments.closing(environment):
            player = Player(agent, environment, seeds.actions)
            _act(client, agent, UnrollCollector(player, config.unroll_length), run_spec)
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
        with client.playing():
            unroll = collector.collect(max(version, 0))
        client.push(codec.encode(unroll), messages.encode_episodes(collector.episodes))
