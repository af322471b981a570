"""How many machines? ``python -m frontend.plan`` says what more than this one would reach."""
