"""Which streams of random numbers an actor draws from."""

from typing import NamedTuple

import numpy as np


class Seeds(NamedTuple):
    """What an actor derives its streams from."""

    environment: int
    actions: int


def seeds_of(seed: int, worker_set: int, task: int, start: int = 0) -> Seeds:
    """Different for each actor of a run, also across worker sets.

    Args:
      seed: of the run.
      worker_set: of the actor.
      task: of the actor.
      start: another one for each process that takes the task, so that one that is started again
        does not play the same games again; 0 at a run's first start.
    """
    states = np.random.SeedSequence([seed, worker_set, task, start]).generate_state(2)
    return Seeds(int(states[0] >> 1), int(states[1]))
