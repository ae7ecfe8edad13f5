# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF, Swin-L, ADE20K."""

_base_ = ["../_base_/ff_swin-l.py", "../_base_/data_ade20k.py"]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150, palette="published_ade20k"),
    test_cfg=dict(_delete_=True, mode="whole"),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.00012))
train_cfg = dict(max_iters=160000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
