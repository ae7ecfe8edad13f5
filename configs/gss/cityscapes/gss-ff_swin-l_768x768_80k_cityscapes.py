# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF, Swin-L, Cityscapes."""

_base_ = ["../_base_/ff_swin-l.py", "../_base_/data_cityscapes.py"]

train_dataloader = dict(batch_size=2)
