"""Updates of real learners, each with its columns of the same unrolls: run by mpirun, or alone.

mpirun -np 2 python tests/learning/one_learner_job.py FLAGS_AS_JSON UPDATES OUT
"""

import json
import pathlib
import socket
import sys

import numpy as np
import torch

from impala_torch.agents import weights
from impala_torch.flags.checks import check
from impala_torch.flags.config import Config
from impala_torch.learner import Learner
from impala_torch.learning import group as groups
from impala_torch.learning.feed import make_batch
from impala_torch.report.tally import Tally
from impala_torch.structures import unroll_layout

T, UNROLLS = 5, 8  # of all ranks together, in each update


def learn(group: groups.Group, flags: dict, updates: int, out: pathlib.Path) -> dict:
    """What a rank has after so many updates; all ranks together learn from UNROLLS each time.

    Args:
      group: the ranks.
      flags: of training; the sizes of batches are those of all ranks together. "spoilt": rewards
        in words, by update, that the last unroll gets there.
      updates: steps of the optimizer.
      out: folder for the run's directory.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = dict(flags)
    spoilt = flags.pop("spoilt", {})
    for name in ("batch_size", "virtual_batch_size"):
        flags[name] = flags.get(name, 0) // group.size
    config = Config(
        **{"level_name": "CartPole-v1", "agent_name": "MLPAgent", **flags},
        unroll_length=T,
        learner_host=f"127.0.0.1:{port}",
        actor_hosts="",
        epsilon=0.01,
        precision="float32",
        learner_threads=1,
        total_environment_frames=10_000,
    )
    check(config)
    learner = Learner(config, group, out)
    tally = Tally(learner.spec.environment.num_actions)
    gradients, metrics = [], []
    for update in range(updates):
        mine = UNROLLS // group.size
        for first in range(group.rank * mine, (group.rank + 1) * mine, config.batch_size):
            columns = slice(first, first + config.batch_size)
            batch = _batch(learner, update, columns)
            if str(update) in spoilt and columns.stop == UNROLLS:
                batch.arrays.reward[1, -1] = float(spoilt[str(update)])
            learner.update(batch, tally)
        grads = [parameter.grad.flatten() for parameter in learner.parameters]
        gradients.append(torch.cat(grads).clone())
        metrics.append(tally.take()["metrics"])
    result = {
        "gradients": torch.stack(gradients),
        "weights": weights.flatten(learner.agent).clone(),
        "kept": {name: tensor.clone() for name, tensor in learner.algorithm.kept().items()},
        "metrics": json.dumps(group.gather(metrics)),
        "counts": [learner.state.updates, learner.state.frames, learner.state.skipped],
    }
    learner.close()
    return result


def _batch(learner: Learner, seed: int, columns: slice):
    batch = make_batch(learner.spec, learner.config.batch_size, learner.device)
    rng = np.random.default_rng(seed)
    spec, state_size = learner.spec.environment, learner.spec.state_size
    for name, (before, after, dtype) in unroll_layout(spec, T, state_size).items():
        shape = (*before, UNROLLS, *after)
        if dtype == "float32":
            whole = rng.normal(size=shape)
        else:
            whole = rng.integers(0, 256 if dtype == "uint8" else 2, shape)
        part = whole[:, columns] if before else whole[columns]
        getattr(batch.arrays, name)[...] = 0 if name == "weights_version" else part
    return batch


def main(flags: str, updates: str, out: pathlib.Path) -> None:
    group = groups.join()
    logdir = out / f"run-{group.rank}"
    logdir.mkdir()
    result = learn(group, json.loads(flags), int(updates), logdir)
    torch.save(result, out / f"rank-{group.rank}.pt")
    group.close()


if __name__ == "__main__":
    main(*sys.argv[1:3], pathlib.Path(sys.argv[3]))
