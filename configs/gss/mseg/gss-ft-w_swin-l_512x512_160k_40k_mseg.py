# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FT-W, Swin-L, MSeg.

Start from GSS-FF's weights: --load-from.
"""

_base_ = "gss-ff_swin-l_512x512_160k_mseg.py"

model = dict(
    type="MultiDomainEncoderDecoder",
    freeze_backbone=True,
    pretrained=None,
    backbone=dict(frozen_stages=4, init_cfg=None),
    decode_head=dict(
        type="GenerativeSegHeadFTW",
        loss_decode=dict(_delete_=True, type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
        post_seg_channel=128,
        post_swin_num_head=4,
        post_swin_depth=2,
        post_swin_window_size=7,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.0015))
find_unused_parameters = True
train_cfg = dict(max_iters=40000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=40000, by_epoch=False),
]
