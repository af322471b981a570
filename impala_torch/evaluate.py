"""Test mode: plays whole games with a run's checkpoint and tells the returns."""

import logging
import pathlib
import statistics
from collections.abc import Collection
from typing import NamedTuple

import torch

from impala_torch import agents, checkpoint, environments
from impala_torch.actor import Player, seeds_of
from impala_torch.agents import precision
from impala_torch.config import Config, UserError

log = logging.getLogger(__name__)

# Of no worker set: test games differ from those of training with the same --seed.
_TEST_SET = (1 << 31) - 1

# What a checkpoint's weights mean something with.
_OF_THE_RUN = ("agent_name", "level_name", "width", "height", "num_action_repeats")


class Scores(NamedTuple):
    """Unclipped returns of whole games."""

    returns: list[float]

    def __str__(self) -> str:
        values = self.returns
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return (
            f"games {len(values)}  mean {statistics.fmean(values):.2f}  "
            f"median {statistics.median(values):.2f}  standard deviation {deviation:.2f}  "
            f"minimum {min(values):.2f}  maximum {max(values):.2f}"
        )


def run(config: Config, given: Collection[str] = ()) -> Scores:
    """Plays --test_num_episodes whole games with the newest checkpoint of --logdir.

    Args:
      config: the flags.
      given: those that the user set; agent and level are otherwise the checkpoint's.

    Raises:
      UserError: no checkpoint, or one of another agent or level.
    """
    if not config.logdir:
        raise UserError("--mode=test needs --logdir: the directory of the run to test")
    logdir = pathlib.Path(config.logdir)
    if not logdir.is_dir():
        raise UserError(f"--logdir={config.logdir} is not a directory")
    state = checkpoint.restore(logdir)
    if state is None:
        raise UserError(f"--logdir={config.logdir} holds no checkpoint yet")
    trained = {name: state["config"][name] for name in _OF_THE_RUN if name not in given}
    config = config.replace(**trained)
    checkpoint.check_matches(state, config.agent_name, config.level_name)
    spec = environments.environment_spec(
        config.level_name, width=config.width, height=config.height
    )
    dtype = precision.resolve(config.precision, "cpu")
    agent = agents.make_agent(config.agent_name, spec, dtype).for_acting()
    try:
        agent.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint in --logdir={config.logdir} does not fit: {error}"
        ) from error
    log.info("%s on %s, %s frames", config.agent_name, config.level_name, f"{state['frames']:,}")
    return play(config, agent, config.test_num_episodes)


def play(config: Config, agent: agents.Agent, games: int) -> Scores:
    """Plays ``games`` whole games side by side, sampling actions from the policy.

    Every environment plays its own share of the games: were they taken as they end, short games
    would be counted more often than long ones.
    """
    num_envs = min(games, config.num_envs)
    shares = [games // num_envs + (env < games % num_envs) for env in range(num_envs)]
    seeds = seeds_of(config.seed, _TEST_SET, 0)
    environment = environments.make_environment(
        config.level_name,
        num_envs,
        seeds.environment,
        width=config.width,
        height=config.height,
        num_action_repeats=config.num_action_repeats,
        episodic_life=False,
        num_threads=torch.get_num_threads(),
    )
    returns: list[float] = []
    totals = [0.0] * num_envs
    try:
        player = Player(agent, environment, seeds.actions)
        output = environment.reset()
        while len(returns) < games:
            action = player.act(player.see(output)).numpy()
            output = environment.step(action)
            for env in range(num_envs):
                totals[env] += float(output.reward[env])
                if output.done[env]:
                    if shares[env]:
                        shares[env] -= 1
                        returns.append(totals[env])
                        log.info("game %d of %d: return %g", len(returns), games, totals[env])
                    totals[env] = 0.0
    finally:
        environment.close()
    return Scores(returns)
