"""What an actor is made of: an agent that plays, its unrolls, its seeds."""
