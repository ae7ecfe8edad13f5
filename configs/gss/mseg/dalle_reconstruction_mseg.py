# ruff: noqa: C408 (mmseg configs are written with dict())
"""Reconstruction check: the round trip of MSeg's training masks, in universal ids, through palette and dVAE.

It needs no --load-from; a GSS checkpoint given there brings its own dVAE.
"""

_base_ = ["../_base_/reconstruction.py", "../_base_/data_mseg.py"]

test_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets={{_base_.mask_sets}}))
test_evaluator = dict(_delete_=True, type="IoUMetric", iou_metrics=["mIoU"])
model = dict(decode_head=dict(num_classes=194, palette="published_mseg"))
