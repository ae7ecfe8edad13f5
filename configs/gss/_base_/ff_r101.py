# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF on a ResNet-101-v1c of output stride 8."""

_base_ = "ff.py"

model = dict(
    pretrained="open-mmlab://resnet101_v1c",
    backbone=dict(
        type="ResNetV1c",
        depth=101,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    ),
    decode_head=dict(in_channels=[512, 256, 1024, 2048], swin_depth=6),
)
