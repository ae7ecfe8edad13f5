# ruff: noqa: C408 (mmseg configs are written with dict())
"""The baseline with filtered, re-sampled images beside the real ones, which count 10 times, as published."""

_base_ = "base_config.py"

train_dataloader = dict(dataset=dict(synthesised="data/FUSU/resampled", repeat=10))
