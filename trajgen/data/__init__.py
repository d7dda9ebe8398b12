"""Data sets of trajectories: made, read, checked, cut into windows; and the worlds they are evaluated in."""
