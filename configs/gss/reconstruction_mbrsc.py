# ruff: noqa: C408 (mmseg configs are written with dict())
"""Reconstruction check of this project's own data. Other data: --classes, --data-root and model.decode_head.palette."""

_base_ = "../mmseg/base.py"

custom_imports = dict(imports=["segmentation", "gss"], allow_failed_imports=False)
data = dict(classes="MBRSC", data_root="data/mbrsc")
train_dataloader = dict(dataset=data)
test_dataloader = dict(dataset=data)
model = dict(
    type="MaskigeReconstruction",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[0, 0, 0], std=[1, 1, 1], bgr_to_rgb=True, size=(8, 8)),
    backbone=dict(type="NoneBackbone"),
    decode_head=dict(
        type="ReconstructionHead",
        num_classes=5,
        palette="mbrsc",
        d_vae=dict(weights="work_dirs/gss/dvae_mbrsc.safetensors"),
        scale=2,
    ),
    test_cfg=dict(mode="whole"),
)
