# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF, ResNet-101, Cityscapes."""

_base_ = ["../_base_/ff_r101.py", "../_base_/data_cityscapes.py"]

train_dataloader = dict(batch_size=2)
