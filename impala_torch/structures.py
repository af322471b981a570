"""The named tuples that flow between environments, actors, learners.

Notation, used everywhere: T = unroll length (agent steps), B = batch size (unrolls), E =
environments of an actor, A = number of actions, K = stacked frames, S = size of the agent state.

**The convention of time.** An unroll has T steps and T + 1 rows; row 0 repeats the last row of
the unroll before it. At row t:

* ``observation[t]`` is what the agent sees, and ``reward[t]`` and ``done[t]`` *led to it*:
  ``done[t]`` says that ``observation[t]`` is the first of a new episode, and ``reward[t]`` is
  then the last reward of the episode before.
* ``action[t]``, ``policy_logits[t]`` and ``baseline[t]`` are what the behaviour policy computed
  *at* ``observation[t]``, given ``reward[t]`` and the last action, which is ``action[t - 1]``
  (``initial_action`` at row 0).
* The agent state is reset wherever ``done[t]`` is true, before row t is processed.

The learner forwards all T + 1 rows from the agent state at row 0, takes row T's baseline as the
bootstrap value, and pairs rows ``[:-1]`` of outputs and actions with rows ``[1:]`` of rewards
and dones.

**Truncation.** Where a time limit ended the episode (``done[t]`` with ``final_value[t] != 0``),
the value of that episode's final observation, as the behaviour policy saw it with the agent
state it had there, is ``final_value[t]``; the learner adds its discounted value to ``reward[t]``.

**Frame stacks.** Environments whose observation is a stack of K frames return single frames;
the stack is a view over time, made by ``stacking.stack_frames`` where the network runs.
"""

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

# In size, that a step may give: its square, summed over any batch, is still a float32.
LARGEST_REWARD = 1e12
# The same of a value: rewards of that size, discounted by 0.999.
LARGEST_VALUE = 1e15

Array = TypeVar("Array")  # np.ndarray, or torch.Tensor


class ObservationSpec(NamedTuple):
    """What one environment observes at one step, before stacking."""

    shape: tuple[int, ...]  # of a single observation; (height, width) where frames are stacked
    dtype: str  # numpy name: "uint8" for images, "float32" for vectors
    stack: int  # K: how many observations in a row the agent sees as one; 1 = no stacking


class EnvironmentSpec(NamedTuple):
    """What an agent must know of a level; both sides compare it when an actor says hello."""

    observation: ObservationSpec
    num_actions: int


class LevelOptions(NamedTuple):
    """A level and how it is played: flags by their names, with their defaults."""

    level_name: str
    width: int = 84  # of image observations, pixels
    height: int = 84
    num_action_repeats: int = 0  # environment frames per step; 0 = the usual of the level
    episodic_life: bool = True  # a life lost ends the learner's episode (Atari)
    max_episode_steps: int = 0  # frames after which a game is cut; 0 = the level's own


class EpisodeResult(NamedTuple):
    """One finished episode of the learner, and the whole game where it ended with it.

    With episodic life a learner's episode is one life; else both are the same. Returns are sums
    of rewards before any clipping; lengths are environment frames (agent steps x repeats).
    """

    episode_return: float
    episode_frames: int
    raw_return: float | None  # None while the game goes on
    raw_frames: int | None


class EnvOutput(NamedTuple):
    """What E environments return after a step (or a reset, with reward 0 and done true)."""

    reward: np.ndarray  # [E] float32, led to this observation
    done: np.ndarray  # [E] bool, this observation starts a new episode
    observation: np.ndarray  # [E, *observation.shape]
    truncated: np.ndarray  # [E] bool, the episode that ended was cut by a time limit
    final_observation: np.ndarray | None  # [E, *shape], valid where truncated; None if nowhere
    episodes: list[EpisodeResult]  # those that ended with this step


class AgentInput(NamedTuple):
    """What an agent's forward takes, for T' rows (1 in acting, T + 1 in learning). Tensors."""

    observation: Any  # [T', B, K * C or C, H, W] uint8, or [T', B, D] float32
    reward: Any  # [T', B] float32, unclipped
    done: Any  # [T', B] bool
    last_action: Any  # [T', B] int64


class AgentOutput(NamedTuple):
    """What an agent's forward returns. Tensors, float32."""

    policy_logits: Any  # [T', B, A]
    baseline: Any  # [T', B]


class Unroll(NamedTuple, Generic[Array]):
    """T steps of E (or, batched, B) environments. Row t as above.

    ``Unroll[np.ndarray]`` is what an actor collects and a batch is assembled in,
    ``Unroll[torch.Tensor]`` what is learned from. In between, as it travels and waits, it is
    ``endpoint.codec.CompressedUnroll``.
    """

    observation: Array  # [T + K, E, *shape]: K - 1 earlier frames, then rows 0..T
    reward: Array  # [T + 1, E] float32
    done: Array  # [T + 1, E] bool
    final_value: Array  # [T + 1, E] float32, 0 except where a time limit ended the episode
    action: Array  # [T + 1, E] int64
    policy_logits: Array  # [T + 1, E, A] float32
    baseline: Array  # [T + 1, E] float32
    initial_action: Array  # [E] int64, the last action at row 0
    agent_state: Array  # [E, S] float32, the agent's state before row 0
    weights_version: Array  # [E] int64, learner updates behind the weights that acted


def unroll_layout(
    spec: EnvironmentSpec, unroll_length: int, state_size: int
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], str]]:
    """Shapes and types of an ``Unroll``'s fields: the one home of that fact.

    Returns:
      Field name -> (shape before the E axis, shape after it, numpy dtype name).
    """
    rows = unroll_length + 1
    observation = spec.observation
    return {
        "observation": (
            (unroll_length + observation.stack,),
            tuple(observation.shape),
            observation.dtype,
        ),
        "reward": ((rows,), (), "float32"),
        "done": ((rows,), (), "bool"),
        "final_value": ((rows,), (), "float32"),
        "action": ((rows,), (), "int64"),
        "policy_logits": ((rows,), (spec.num_actions,), "float32"),
        "baseline": ((rows,), (), "float32"),
        "initial_action": ((), (), "int64"),
        "agent_state": ((), (state_size,), "float32"),
        "weights_version": ((), (), "int64"),
    }


_ANY = EnvironmentSpec(ObservationSpec((), "float32", 1), 1)
_WITH_ROWS = frozenset(name for name, (rows, _, _) in unroll_layout(_ANY, 1, 0).items() if rows)


def columns_of(unroll: Unroll[Array], columns: Any) -> Unroll[Array]:
    """An unroll of some of the environments, by their numbers (an index array or tensor)."""
    return Unroll(
        **{
            name: array[:, columns] if name in _WITH_ROWS else array[columns]
            for name, array in unroll._asdict().items()
        }
    )


def empty_unroll(
    spec: EnvironmentSpec, unroll_length: int, state_size: int, size: int
) -> Unroll[np.ndarray]:
    """An ``Unroll`` of zeros for ``size`` environments (E or B), as NumPy arrays."""
    layout = unroll_layout(spec, unroll_length, state_size)
    return Unroll(
        **{
            name: np.zeros((*before, size, *after), dtype)
            for name, (before, after, dtype) in layout.items()
        }
    )
