"""Priors: distributions over codes given a condition."""
