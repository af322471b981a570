"""What is minimised, and how a batch is used: one file an algorithm, behind one seam (``base``)."""

from impala_torch.algorithms.appo import Appo
from impala_torch.algorithms.base import Algorithm
from impala_torch.algorithms.impala import Impala

__all__ = ["ALGORITHMS", "Algorithm"]

ALGORITHMS: dict[str, type[Algorithm]] = {"impala": Impala, "appo": Appo}
