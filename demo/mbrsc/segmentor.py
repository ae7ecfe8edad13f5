# ruff: noqa: C408 (mmseg configs are written with dict())
"""The segmentor in the box: a U-Net of 16 channels on real images of MBRSC alone (docs/small_model.md)."""

_base_ = "../../configs/mmseg/tiny_unet.py"

model = dict(backbone=dict(base_channels=16), decode_head=dict(in_channels=16, channels=16, num_classes=5))
test_dataloader = dict(dataset=dict(classes="MBRSC"))
