"""A rank of scale.py's jobs: makes updates on ready data when rank 0 is told how many.

    mpirun ... python sandbox/benchmarks/scale_rank.py WAY FLAGS

WAY is how gradients are averaged. Rank 0 reads a number of updates a line from standard input, 0
ends all ranks, and prints a line of JSON after each.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from impala_torch.flags import command_line  # noqa: E402
from impala_torch.learning import group as groups  # noqa: E402
from impala_torch.measure import measure  # noqa: E402


class Flat(groups.HorovodGroup):
    """Averages all gradients as one tensor when backward is over."""

    def distributed(self, optimizer, *_):
        return optimizer

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence, max_norm: float
    ) -> torch.Tensor | None:
        started = time.perf_counter()
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
        self.average(flat)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad.copy_(part.view_as(parameter))
        self.allreduce_secs += time.perf_counter() - started
        return groups.Group.step(self, optimizer, parameters, max_norm)


# "half" is --gradients_precision=float16; "alone" averages nothing.
WAYS = {"flat": Flat} | dict.fromkeys(("hooks", "half", "alone"), groups.HorovodGroup)


def main(way: str, flags: list[str]) -> None:
    several = int(os.environ["OMPI_COMM_WORLD_SIZE"]) > 1
    ranks = WAYS[way]() if several else groups.Group()
    averages = groups.Group() if way == "alone" else ranks
    command_line.define_flags()
    command_line.parse_flags(["scale_rank", *flags])
    config = command_line.from_flags().replace(
        learner_threads=1,
        progress_secs=1e9,
        gradients_precision="float16" if way == "half" else "float32",
    )
    buffers = measure.record(config)
    with measure.ready_learner(config, averages, buffers) as (learner, update):
        told = {"pids": ranks.gather(os.getpid())}
        if not averages.size > 1:  # else its own backward would average
            told["overlap_secs"] = measure.overlap_secs(learner)
        while True:
            if ranks.rank == 0:
                print(json.dumps(told), flush=True)
            updates = ranks.agree([int(sys.stdin.readline()) if ranks.rank == 0 else 0])[0]
            if not updates:
                break
            averaged, secs = averages.allreduce_secs, []
            begun = time.perf_counter()
            for _ in range(updates):
                started = time.perf_counter()
                update()
                secs.append(time.perf_counter() - started)
            told = {
                "secs": time.perf_counter() - begun,
                "allreduce_secs": averages.allreduce_secs - averaged,
                "update_secs": secs,
            }
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
