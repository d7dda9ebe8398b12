"""Decoders: latent to trajectory, with or without the condition's guidance."""
