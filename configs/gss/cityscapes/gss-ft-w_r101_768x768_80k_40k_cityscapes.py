# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FT-W, ResNet-101, Cityscapes.

Start from GSS-FF's weights: --load-from.
"""

_base_ = "gss-ff_r101_768x768_80k_cityscapes.py"

model = dict(
    type="GenerativeEncoderDecoder",
    freeze_backbone=True,
    pretrained=None,
    backbone=dict(frozen_stages=4),
    decode_head=dict(
        type="GenerativeSegHeadFTW",
        loss_decode=dict(_delete_=True, type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
        post_seg_channel=128,
        post_swin_num_head=4,
        post_swin_depth=1,
        post_swin_window_size=7,
    ),
)
find_unused_parameters = True
