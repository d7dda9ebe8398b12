"""Pictures of runs: their training, their plans, their episodes, and one page that compares them."""
