"""What is minimised: losses and update rules, one file an algorithm."""
