"""What serves the learner's loop: the group of ranks, the feed, optimizers, state, checkpoints."""
