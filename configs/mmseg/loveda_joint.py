# ruff: noqa: C408 (mmseg configs are written with dict())
"""The same with synthesized images beside the real ones, which count 10 times."""

_base_ = "loveda.py"

train_dataloader = dict(dataset=dict(synthesized="data/LoveDA/resampled", repeat=10))
