# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF on HRNet-W48."""

_base_ = "ff.py"

model = dict(
    pretrained="open-mmlab://msra/hrnetv2_w48",
    backbone=dict(
        type="HRNet",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        norm_eval=False,
        extra=dict(
            stage1=dict(num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(4,), num_channels=(64,)),
            stage2=dict(num_modules=1, num_branches=2, block="BASIC", num_blocks=(4,) * 2, num_channels=(48, 96)),
            stage3=dict(num_modules=4, num_branches=3, block="BASIC", num_blocks=(4,) * 3, num_channels=(48, 96, 192)),
            stage4=dict(
                num_modules=3, num_branches=4, block="BASIC", num_blocks=(4,) * 4, num_channels=(48, 96, 192, 384)
            ),
        ),
    ),
    decode_head=dict(in_channels=[96, 48, 192, 384], swin_depth=6),
)
