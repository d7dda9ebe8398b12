"""Layers that several component rooms share."""
