# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF on SegFormer's MiT-B0, FUSU. Other data: --classes TABLE, --cfg-options model.decode_head.palette=PALETTE."""

_base_ = "../mmseg/segformer_b0.py"

custom_imports = dict(imports=["segmentation", "gss"], allow_failed_imports=False)
model = dict(
    decode_head=dict(
        _delete_=True,
        type="GenerativeSegHeadFF",
        in_channels=[64, 32, 160, 256],
        in_index=[1, 0, 2, 3],
        channels=128,
        dropout_ratio=0.1,
        num_classes=17,
        palette="fusu",
        # any size of dVAE: DALL-E's (scripts/convert_dvae.py), or one of your masks (scripts/train_dvae.py)
        d_vae=dict(weights="checkpoints/dalle_dvae.safetensors"),
        norm_cfg=dict(type="SyncBN", requires_grad=True),
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
        indice_seg_channel=256,
        indice_cls_channel=512,
        swin_num_head=8,
    )
)
