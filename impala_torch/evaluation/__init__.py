"""Whole games and what they score: test mode, beside training, on video."""
