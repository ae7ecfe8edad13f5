# ruff: noqa: C408 (mmseg configs are written with dict())
"""Reconstruction check: the round trip of ADE20K's masks through palette and dVAE, no image model.

It needs no --load-from; a GSS checkpoint given there brings its own dVAE.
"""

_base_ = ["../_base_/reconstruction.py", "../_base_/data_ade20k.py"]

model = dict(decode_head=dict(num_classes=150, palette="published_ade20k"))
