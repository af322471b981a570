"""A2C in one file: how to use impala_torch as a library. Read it from top to bottom.

    python sandbox/examples/a2c.py                    CartPole on one core, in half a minute
    mpirun -np 2 python sandbox/examples/a2c.py       the same with two learners in step

IMPALA's actors play while its learners learn, so their data is a little old, and V-trace corrects
for that. A2C has one loop: play T steps in E environments, learn from them, play on with the new
weights. Its data is never old, so it needs no endpoint, no queue and no correction; all else is
the same: environments, agents, losses, optimizer, learner group.

Notation: T = unroll length (agent steps), E = environments, A = actions, S = size of the agent's
state. Time comes first: [T, E] is T rows of E environments. impala_torch/structures.py says what
belongs to which row.
"""

import argparse
import collections
import dataclasses
import hashlib
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

# The project need not be installed: its folder on Python's path is enough.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

import numpy as np
import plotext
import torch

from impala_torch import environments, vtrace
from impala_torch.agents import Agent, make_agent, weights
from impala_torch.algorithms import impala
from impala_torch.environments.base import Environment
from impala_torch.flags.errors import UserError
from impala_torch.learning import group, optimizers
from impala_torch.machine import processes
from impala_torch.structures import AgentInput, EnvOutput, EpisodeResult

RECENT = 100  # episodes whose mean return is told
POINTS = 25  # of the curve, and lines of progress


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that two runs could differ in. Names are those of experiment.py's flags."""

    level_name: str = "CartPole-v1"
    agent_name: str = "MLPAgent"
    total_environment_frames: int = 400_000
    seed: int = 1
    num_envs: int = 16  # E, of one learner
    unroll_length: int = 20  # T
    discounting: float = 0.99
    entropy_cost: float = 0.01
    baseline_cost: float = 0.5
    learning_rate: float = 0.004  # at the start; it falls to 0
    epsilon: float = 0.01
    gradients_clipping: float = 40.0


# --- 1. Acting -----------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """What T steps in E environments left behind, as tensors."""

    inputs: AgentInput  # [T + 1, E, ...]: what the agent saw; the last row, it has not acted on yet
    state: torch.Tensor  # [E, S]: the agent's state before row 0; S = 0 without LSTM
    actions: torch.Tensor  # [T, E] int64: taken at rows 0..T-1
    final_values: torch.Tensor  # [T, E] float32: of what a time limit cut off, else 0
    episodes: list[EpisodeResult]  # that ended meanwhile


class Actor:
    """Plays with whatever weights the agent has at the time."""

    def __init__(self, agent: Agent, environment: Environment) -> None:
        self._agent, self._environment = agent, environment
        # An environment is E of them. They start together, and start anew by themselves.
        no_action = torch.zeros(environment.num_envs, dtype=torch.int64)
        self._row = row_of(environment.reset(), no_action)
        self._state = agent.initial_state(environment.num_envs)

    @torch.no_grad()
    def play(self, steps: int) -> Rollout:
        """T = ``steps`` more steps in each environment."""
        state_before = self._state
        rows, actions, final_values = [self._row], [], []
        episodes: list[EpisodeResult] = []
        for _ in range(steps):
            # An agent takes any number of rows, here one, and its state before them. It resets
            # the state by itself where ``done`` says that an episode begins.
            outputs, self._state = self._agent(rows[-1], self._state)
            action = torch.distributions.Categorical(logits=outputs.policy_logits[0]).sample()
            seen = self._environment.step(action.numpy())
            actions.append(action)
            final_values.append(self._value_of_cut(seen, action))
            episodes += seen.episodes
            rows.append(row_of(seen, action))
        self._row = rows[-1]
        inputs = AgentInput(*(torch.cat(fields) for fields in zip(*rows, strict=True)))
        return Rollout(
            inputs, state_before, torch.stack(actions), torch.stack(final_values), episodes
        )

    def _value_of_cut(self, seen: EnvOutput, action: torch.Tensor) -> torch.Tensor:
        """[E]: what an episode would still have been worth that only a time limit ended.

        ``seen.observation`` is of the next episode already; the last one of the episode that was
        cut is in ``final_observation``.
        """
        if seen.final_observation is None:
            return torch.zeros(len(action))
        goes_on = np.zeros_like(seen.done)
        row = row_of(seen._replace(observation=seen.final_observation, done=goes_on), action)
        outputs, _ = self._agent(row, self._state)
        return torch.where(torch.from_numpy(seen.truncated), outputs.baseline[0], 0.0)


def row_of(seen: EnvOutput, last_action: torch.Tensor) -> AgentInput:
    """What environments returned, as one row [1, E, ...] of an agent's input."""
    return AgentInput(
        observation=torch.from_numpy(seen.observation).unsqueeze(0),
        reward=torch.from_numpy(seen.reward).unsqueeze(0),
        done=torch.from_numpy(seen.done).unsqueeze(0),
        last_action=last_action.unsqueeze(0),
    )


# --- 2. Learning ---------------------------------------------------------------------------------


def n_step_returns(
    rewards: torch.Tensor, discounts: torch.Tensor, values: torch.Tensor, bootstrap: torch.Tensor
) -> vtrace.VTraceReturns:
    """Returns to the unroll's end, bootstrapped there: V-trace of data that is not old.

    Where the policy that learns is the one that acted, all importance weights rho are 1 (their
    logarithms 0), and V-trace's ``vs[t]`` is the n-step return

        r[t] + g[t] r[t+1] + g[t] g[t+1] r[t+2] + ... + g[t] ... g[T-1] V(x[T])

    and ``pg_advantages[t]`` is that minus V(x[t]). Remark 1 of the IMPALA paper says so.

    Args: rewards, discounts (g), values [T, E]; bootstrap [E] is V(x[T]).
    """
    return vtrace.from_importance_weights(
        torch.zeros_like(rewards), discounts, rewards, values, bootstrap
    )


def a2c_loss(agent: Agent, rollout: Rollout, settings: Settings) -> torch.Tensor:
    """[]: policy gradient, baseline and entropy terms, summed over T and E."""
    # All T + 1 rows at once, now with gradient. An LSTM goes through the same states again.
    outputs, _ = agent(rollout.inputs, rollout.state)
    logits, values = outputs.policy_logits[:-1], outputs.baseline[:-1]
    # Row t + 1 has the reward that row t's action led to, and whether it ended the episode.
    rewards = rollout.inputs.reward[1:] + settings.discounting * rollout.final_values
    discounts = settings.discounting * (~rollout.inputs.done[1:]).float()
    targets = n_step_returns(rewards, discounts, values, outputs.baseline[-1])
    return (
        impala.policy_gradient_loss(logits, rollout.actions, targets.pg_advantages)
        + settings.baseline_cost * impala.baseline_loss(targets.vs - values)
        + settings.entropy_cost * impala.entropy_loss(logits)
    )


# --- 3. Training, alone or in a group ------------------------------------------------------------


class Result(NamedTuple):
    """What training leaves."""

    agent: Agent
    frames: list[int]  # environment frames, over all learners
    returns: list[float]  # by then, the mean of the last RECENT episodes of all learners


def train(
    settings: Settings,
    learners: group.Group,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Result:
    """Trains to the frame limit, or until any learner's ``should_stop()``.

    Args:
      learners: what ``group.join()`` returned: of one without mpirun. Each learner has
        environments of its own; gradients are added up, so that all keep the same weights.
      say: is told of the progress; rank 0's only.

    Raises:
      UserError: level and agent do not fit, or learners differ in their settings.
    """
    learners.check_same(dataclasses.asdict(settings))
    torch.manual_seed(settings.seed + learners.rank)
    environment = environments.make_environment(
        settings.level_name, settings.num_envs, seed=settings.seed + learners.rank
    )
    if environment.spec.observation.stack > 1:
        raise UserError(
            f"--level_name={settings.level_name} wants stacked frames, which this example leaves "
            "out: impala_torch.acting.player.Player stacks them"
        )
    agent = make_agent(settings.agent_name, environment.spec)
    optimizer: torch.optim.Optimizer = optimizers.TFRMSProp(
        agent.parameters(), lr=settings.learning_rate, epsilon=settings.epsilon
    )
    with torch.no_grad():
        learners.broadcast(agent.state_dict().values())  # rank 0's weights are everyone's
    # The loss is a sum over this learner's rollout, and so over all learners'.
    optimizer = learners.distributed(optimizer, agent.named_parameters(), reduction=group.SUM)

    actor = Actor(agent, environment)
    recent: collections.deque[float] = collections.deque(maxlen=RECENT)
    curve = Result(agent, [], [])
    total, begun = settings.total_environment_frames, time.monotonic()
    frames = points = 0
    steps = learners.size * settings.num_envs * settings.unroll_length
    frames_per_update = steps * environments.resolve(settings.level_name).num_action_repeats
    # Ranks must all make the same updates: one that left would be waited for. So they agree.
    while frames < total and not learners.agree([should_stop()])[0]:
        rollout = actor.play(settings.unroll_length)
        loss = a2c_loss(agent, rollout, settings)
        optimizer.zero_grad()
        loss.backward()
        for parameters in optimizer.param_groups:
            parameters["lr"] = optimizers.linear_decay(settings.learning_rate, frames, total)
        # Adds the gradients of all ranks up, then clips, then steps.
        learners.step(optimizer, list(agent.parameters()), settings.gradients_clipping)
        frames += frames_per_update
        recent.extend(episode.episode_return for episode in rollout.episodes)
        if frames * POINTS // total > points:
            points = frames * POINTS // total
            everyone = [value for values in learners.gather(list(recent)) for value in values]
            if everyone:
                curve.frames.append(frames)
                curve.returns.append(statistics.fmean(everyone))
                if learners.rank == 0:
                    say(progress(curve, total, time.monotonic() - begun))
    environment.close()
    learners.check_same({"weights": fingerprint(agent)})  # bit-equal on all ranks
    return curve


def progress(curve: Result, total: int, secs: float) -> str:
    """A line: how far, how good, how fast, how long."""
    frames = curve.frames[-1]
    rate = frames / secs
    return (
        f"frames {frames:>9,} of {total:,}   mean return {curve.returns[-1]:6.1f}   "
        f"{rate:,.0f} frames/s   {max(0, total - frames) / rate:.0f} s left"
    )


def fingerprint(agent: Agent) -> str:
    """SHA-256 of all weights."""
    return hashlib.sha256(weights.flatten(agent).numpy().tobytes()).hexdigest()


# --- 4. The command ------------------------------------------------------------------------------


def draw(curve: Result, settings: Settings) -> None:
    """The curve, in the terminal."""
    figure = plotext.figure.clear().plot_size(76, 16)
    thousands = [frames / 1000 for frames in curve.frames]
    figure.draw(figure.signal(thousands, curve.returns, marker="braille").lines())
    figure.title(f"{settings.level_name}: mean return of the last {RECENT} episodes")
    figure.label("environment frames, thousands", "x")
    figure.show(colorless=True)  # as it can be pasted into a document


def parse(argv: list[str]) -> tuple[Settings, bool]:
    """The settings, and whether to be quiet. Ends the program with 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(Settings):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, metavar="VALUE")
    parser.add_argument("--quiet", action="store_true", help="draw only the curve, at the end")
    values = vars(parser.parse_args(argv))
    quiet = values.pop("quiet")
    for name in ("total_environment_frames", "num_envs", "unroll_length", "epsilon"):
        if values[name] <= 0:
            parser.error(f"--{name} must be more than 0, not {values[name]}")
    return Settings(**values), quiet


def main(argv: list[str]) -> int:
    settings, quiet = parse(argv)
    torch.set_num_threads(1)  # layers this small gain nothing by more
    stop = processes.StopRequest().install()  # Ctrl-C: end the loop, draw what there is
    learners = group.join()
    try:
        result = train(settings, learners, stop.requested, (lambda _: None) if quiet else print)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        learners.abort(2)  # the others need not wait
        return 2
    if learners.rank == 0 and result.frames:
        draw(result, settings)
        print(f"{learners.size} learner(s), mean return {result.returns[-1]:.1f}")
    learners.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
