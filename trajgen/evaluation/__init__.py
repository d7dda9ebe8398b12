"""Rollouts with paired seeds, and their statistics; knows policies and environments, no method."""
