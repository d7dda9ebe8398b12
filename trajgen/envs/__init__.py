"""Environments: how they are made, when an episode has succeeded, reference controllers and scores."""
