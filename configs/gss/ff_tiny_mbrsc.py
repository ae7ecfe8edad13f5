# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF on a backbone that trains on a CPU in minutes, MBRSC; the dVAE comes from scripts/train_dvae.py."""

_base_ = "../mmseg/base.py"

custom_imports = dict(imports=["segmentation", "gss"], allow_failed_imports=False)
crop_size = (128, 128)
train_pipeline = [
    dict(type="ReadImage"),
    dict(type="ReadAnnotations"),
    dict(type="RandomResize", scale=(256, 256), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="ReadImage"),
    dict(type="Resize", scale=(256, 256), keep_ratio=True),
    dict(type="ReadAnnotations"),
    dict(type="PackSegInputs"),
]
data = dict(classes="MBRSC", data_root="data/mbrsc")
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(**data, pipeline=train_pipeline)
)
test_dataloader = dict(num_workers=0, dataset=dict(**data, pipeline=test_pipeline))
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=crop_size,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="MixVisionTransformer",
        embed_dims=16,
        num_stages=4,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=2,
        qkv_bias=True,
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        type="GenerativeSegHeadFF",
        in_channels=[32, 16, 64, 128],
        in_index=[1, 0, 2, 3],
        channels=32,
        dropout_ratio=0.0,
        num_classes=5,
        palette="mbrsc",
        d_vae=dict(weights="work_dirs/gss/dvae_mbrsc.safetensors"),
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=[
            dict(type="CrossEntropyLoss", loss_name="loss_ce", predicts="tokens", loss_weight=0.8, avg_non_ignore=True),
            dict(
                type="CrossEntropyLoss",
                loss_name="loss_ce_pixel",
                predicts="pixels",
                loss_weight=0.2,
                avg_non_ignore=True,
            ),
        ],
        indice_seg_channel=64,
        indice_cls_channel=128,
        swin_num_head=4,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
train_cfg = dict(max_iters=800)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=50, by_epoch=False),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=50, end=800, by_epoch=False),
]
