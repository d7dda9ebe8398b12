"""Tokenizers: trajectory to codes, scale by scale, and codes to the latent that a decoder and an action head read."""
