# ruff: noqa: C408 (mmseg configs are written with dict())
"""The same with synthesised images beside the real ones, which count 10 times."""

_base_ = "loveda.py"

train_dataloader = dict(dataset=dict(synthesised="data/LoveDA/resampled", repeat=10))
