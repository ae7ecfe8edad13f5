"""Scenes of any size, painted by overlapping windows."""
