"""Data sets of trajectories: read, checked, imported, written, cut into windows."""
