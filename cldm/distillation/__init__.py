"""Distillation: of a trained model, one that paints in 4 to 8 steps."""
