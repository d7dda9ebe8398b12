"""Encoders: image to features, which follow the vectors of an observation in the state."""
