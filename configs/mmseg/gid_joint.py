# ruff: noqa: C408 (mmseg configs are written with dict())
"""The same with synthesized images beside the real ones, which count 10 times."""

_base_ = "gid.py"

train_dataloader = dict(dataset=dict(synthesized="data/GID/resampled", repeat=10))
