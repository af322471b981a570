"""Starts a run over machines named in a CSV file. Knows nothing of learning, loads no torch."""
