"""Critics: what a plan is worth."""
