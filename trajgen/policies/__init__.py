"""Policies: acting in environments with a planner."""
