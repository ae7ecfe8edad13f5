# ruff: noqa: C408 (mmseg configs are written with dict())
"""Mask -> maskige -> tokens -> maskige -> mask; the data set comes from the file that builds on it."""

_base_ = "runtime.py"

model = dict(
    type="MaskigeReconstruction",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[0, 0, 0], std=[1, 1, 1], bgr_to_rgb=True, size=(8, 8)),
    backbone=dict(type="NoneBackbone"),
    decode_head=dict(
        type="ReconstructionHead",
        d_vae=dict(
            weights="checkpoints/dalle_dvae.safetensors",
            encoder=dict(n_hid=256, n_blk_per_group=2, vocab_size=8192),
            decoder=dict(n_init=128, n_hid=256, n_blk_per_group=2, vocab_size=8192),
        ),
        scale=1,
    ),
    test_cfg=dict(mode="whole"),
)
