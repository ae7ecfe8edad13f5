# ruff: noqa: C408 (mmseg configs are written with dict())
"""PSPNet-R50 on GID's real images (GID-24: 24 classes)."""

_base_ = "pspnet_r50.py"

data = dict(classes="GID", data_root="data/GID")
train_dataloader = dict(dataset=data)
test_dataloader = dict(dataset=data)
model = dict(decode_head=dict(num_classes=24), auxiliary_head=dict(num_classes=24))
