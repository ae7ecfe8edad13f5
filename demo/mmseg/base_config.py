# ruff: noqa: C408 (mmseg configs are written with dict())
"""PSPNet-R50 on FUSU's real images (17 classes, crops of 512): the baseline, as published."""

_base_ = "../../configs/mmseg/pspnet_r50.py"

data = dict(classes="FUSU", data_root="data/FUSU")
train_dataloader = dict(dataset=data)
test_dataloader = dict(dataset=data)
