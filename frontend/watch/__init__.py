"""A run that goes on: its status, live view, supervisor, and the welcome of its actors."""
