"""IMPALA (Espeholt et al. 2018) in PyTorch for many machines."""

__version__ = "0.1.0"
