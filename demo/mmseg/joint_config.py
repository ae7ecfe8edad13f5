# ruff: noqa: C408 (mmseg configs are written with dict())
"""The baseline with filtered, re-sampled images beside the real ones, which count 10 times; 240,000 iterations."""

_base_ = "base_config.py"

max_iterations = 240000

train_dataloader = dict(dataset=dict(synthesized="data/FUSU/resampled", repeat=10))
train_cfg = dict(max_iters=max_iterations)
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=max_iterations, by_epoch=False)]
default_hooks = dict(logger=dict(interval=1000))
