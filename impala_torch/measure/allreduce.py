"""Times an allreduce over the ranks that mpirun started: what the check before a start runs.

    mpirun ... python -m impala_torch.measure.allreduce

Rank 0 prints a line of JSON: ranks, bytes, secs (the median of several), and small_secs, the same
of a single number: what every allreduce takes, whatever its size.
"""

import json
import statistics
import sys
import time

import torch

from impala_torch.flags.errors import UserError
from impala_torch.learning import group

_FLOATS = 1 << 20
_TIMES = 5


def main() -> int:
    try:
        ranks = group.join()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    secs, tensor = _time(ranks, _FLOATS)
    small_secs, _ = _time(ranks, 1)
    expected = (ranks.size - 1) / 2
    if not torch.all(tensor == expected):
        print(f"error: the average is {tensor[0]} instead of {expected}", file=sys.stderr)
        return 1
    if ranks.rank == 0:
        result = {
            "ranks": ranks.size,
            "bytes": tensor.nbytes,
            "secs": secs,
            "small_secs": small_secs,
        }
        print(json.dumps(result), flush=True)
    ranks.close()
    return 0


def _time(ranks: group.Group, floats: int) -> tuple[float, torch.Tensor]:
    """Seconds of averaging so many numbers, and the last average."""
    secs = []
    for _ in range(_TIMES + 1):
        tensor = torch.full((floats,), float(ranks.rank))
        started = time.perf_counter()
        ranks.average(tensor)
        secs.append(time.perf_counter() - started)
    return statistics.median(secs[1:]), tensor  # the first one connects


if __name__ == "__main__":
    sys.exit(main())
