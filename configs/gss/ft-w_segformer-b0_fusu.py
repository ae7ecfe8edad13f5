# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FT-W on SegFormer's MiT-B0, FUSU.

Start from GSS-FF's weights: --load-from.
"""

_base_ = "ff_segformer-b0_fusu.py"

model = dict(
    type="GenerativeEncoderDecoder",
    freeze_backbone=True,
    decode_head=dict(
        type="GenerativeSegHeadFTW",
        loss_decode=dict(_delete_=True, type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
        post_seg_channel=64,
        post_swin_depth=1,
    ),
)
