"""Action heads: what to do, read off a plan."""
