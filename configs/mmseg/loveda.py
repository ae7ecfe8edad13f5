# ruff: noqa: C408 (mmseg configs are written with dict())
"""PSPNet-R50 on LoveDA's real images (7 classes)."""

_base_ = "pspnet_r50.py"

data = dict(classes="LoveDA", data_root="data/LoveDA")
train_dataloader = dict(dataset=data)
test_dataloader = dict(dataset=data)
model = dict(decode_head=dict(num_classes=7), auxiliary_head=dict(num_classes=7))
