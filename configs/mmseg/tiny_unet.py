# ruff: noqa: C408 (mmseg configs are written with dict())
"""A narrow U-Net (Ronneberger et al., MICCAI 2015): full resolution, for tiles of 64 to 128 pixels on a CPU."""

_base_ = "tiny.py"

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type="AnySizeUNet",
        base_channels=12,
        num_stages=4,
        strides=(1, 1, 1, 1),
        enc_num_convs=(1, 2, 2, 2),
        dec_num_convs=(1, 1, 1),
        downsamples=(True, True, True),
        enc_dilations=(1, 1, 1, 1),
        dec_dilations=(1, 1, 1),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=12,
        in_index=3,
        channels=12,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0,
        num_classes=17,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
)
