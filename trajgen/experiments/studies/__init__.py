"""Studies: a grid of trainings and evaluations over seeds, and one table of what came of it."""
