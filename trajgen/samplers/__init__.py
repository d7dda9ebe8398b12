"""Samplers: how codes are drawn from a prior."""
