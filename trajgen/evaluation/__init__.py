"""Rollouts with paired seeds, statistics, pictures and reports; knows policies and worlds, no method."""
