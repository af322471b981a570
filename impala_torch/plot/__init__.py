"""Curves of runs, ours and others', as a picture or in the terminal: ``python -m
impala_torch.plot``."""
