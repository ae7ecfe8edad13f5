# ruff: noqa: C408 (mmseg configs are written with dict())
"""Fast-SCNN (Poudel et al., BMVC 2019) at half its width: trains on a CPU in minutes."""

_base_ = "base.py"

crop_size = (256, 256)
train_pipeline = _base_.train_pipeline
train_pipeline[3]["crop_size"] = crop_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
norm_cfg = dict(type="SyncBN", requires_grad=True)
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
        type="FastSCNN",
        downsample_dw_channels=(16, 24),
        global_in_channels=32,
        global_block_channels=(32, 48, 64),
        global_block_strides=(2, 2, 1),
        global_out_channels=64,
        higher_in_channels=32,
        lower_in_channels=64,
        fusion_out_channels=64,
        out_indices=(0, 1, 2),
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
    decode_head=dict(
        type="DepthwiseSeparableFCNHead",
        in_channels=64,
        channels=64,
        concat_input=False,
        num_classes=17,
        in_index=-1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

optim_wrapper = dict(_delete_=True, type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01))
