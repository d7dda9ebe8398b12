"""Pictures of runs: their training, their plans, their episodes, and one page that compares them."""

from trajgen.viz.plans import draw_plans, draw_run

__all__ = ["draw_plans", "draw_run"]
