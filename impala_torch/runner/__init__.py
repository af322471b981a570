"""Runs many experiments of one description file: ``python -m impala_torch.runner --run=FILE``."""

from impala_torch.runner.description import Experiment, ParamGrid, ParamList, RunDescription

__all__ = ["Experiment", "ParamGrid", "ParamList", "RunDescription"]
