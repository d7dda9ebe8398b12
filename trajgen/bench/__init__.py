"""How fast it is on this machine: decisions, training, data."""
