# ruff: noqa: C408 (mmseg configs are written with dict())
"""Reconstruction check: the round trip of MSeg's masks through palette and dVAE, no image model.

It needs no --load-from; a GSS checkpoint given there brings its own dVAE.
"""

_base_ = ["../_base_/reconstruction.py", "../_base_/data_mseg.py"]

model = dict(decode_head=dict(num_classes=194, palette="published_mseg"))
