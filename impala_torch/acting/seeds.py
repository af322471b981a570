"""Which streams of random numbers an actor draws from."""

from typing import NamedTuple

import numpy as np


class Seeds(NamedTuple):
    """What an actor derives its streams from."""

    environment: int
    actions: int


def seeds_of(seed: int, worker_set: int, task: int) -> Seeds:
    """Different for each actor of a run, also across worker sets; the same at each start."""
    states = np.random.SeedSequence([seed, worker_set, task]).generate_state(2)
    return Seeds(int(states[0] >> 1), int(states[1]))
