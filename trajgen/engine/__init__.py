"""The engine: trains the stages of any planner; it knows no method."""
