"""Synthesis: what is missing, making it, writing it."""
