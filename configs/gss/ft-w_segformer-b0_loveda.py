# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FT-W on SegFormer's MiT-B0, LoveDA.

Start from GSS-FF's weights: --load-from.
"""

_base_ = "ft-w_segformer-b0_fusu.py"

data = dict(classes="LoveDA", data_root="data/LoveDA")
train_dataloader = dict(dataset=data)
test_dataloader = dict(dataset=data)
model = dict(decode_head=dict(num_classes=7, palette="loveda"))
