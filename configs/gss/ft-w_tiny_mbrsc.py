# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FT-W on a tiny backbone, MBRSC.

Start from GSS-FF's weights: --load-from.
"""

_base_ = "ff_tiny_mbrsc.py"

model = dict(
    type="GenerativeEncoderDecoder",
    freeze_backbone=True,
    decode_head=dict(
        type="GenerativeSegHeadFTW",
        loss_decode=dict(_delete_=True, type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
        post_seg_channel=16,
        post_swin_num_head=2,
        post_swin_depth=1,
    ),
)
train_dataloader = dict(batch_size=2)  # the way back works at twice the image's size
