"""Planners: compositions of components that are trained stage by stage and then make plans."""
