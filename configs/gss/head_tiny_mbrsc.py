# ruff: noqa: C408 (mmseg configs are written with dict())
"""An ordinary head (SegFormer's) on the tiny backbone, same data and schedule: what GSS is compared with."""

_base_ = "ff_tiny_mbrsc.py"

model = dict(
    decode_head=dict(
        _delete_=True,
        type="SegformerHead",
        in_channels=[16, 32, 64, 128],
        in_index=[0, 1, 2, 3],
        channels=64,
        dropout_ratio=0.0,
        num_classes=5,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
    )
)
