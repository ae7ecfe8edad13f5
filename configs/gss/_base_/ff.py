# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF at its published size; the backbone comes from the file that builds on it."""

_base_ = "runtime.py"

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(768, 768),
        pad_val=0,
        seg_pad_val=255,
    ),
    decode_head=dict(
        type="GenerativeSegHeadFF",
        in_index=[1, 0, 2, 3],
        channels=384,
        dropout_ratio=0.1,
        img_size=(768, 768),
        norm_cfg=norm_cfg,
        align_corners=False,
        num_classes=19,
        palette="published_cityscapes",
        # DALL-E's weights, converted by scripts/convert_dvae.py: to train from scratch. A GSS checkpoint holds its
        # dVAE, which is taken wherever one is loaded (--load-from)
        d_vae=dict(
            weights="checkpoints/dalle_dvae.safetensors",
            encoder=dict(n_hid=256, n_blk_per_group=2, vocab_size=8192),
            decoder=dict(n_init=128, n_hid=256, n_blk_per_group=2, vocab_size=8192),
        ),
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
        indice_channel_index=1,
        pixel_channel_index=1,
        indice_seg_channel=512,
        indice_cls_channel=2048,
        swin_num_head=16,
        swin_depth=2,
        swin_window_size=7,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=(768, 768), stride=(512, 512)),
)
