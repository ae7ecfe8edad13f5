"""Latent diffusion: networks, first stages, text encoders, sampling and data."""
