"""A backbone that passes pixels on: with a 1 x 1 convolution as head, logits are W x + b, and known."""

from mmengine.model import BaseModule
from mmseg.registry import MODELS


@MODELS.register_module(force=True)
class PixelBackbone(BaseModule):
    def __init__(self, in_channels=3, init_cfg=None):
        super().__init__(init_cfg)

    def forward(self, x):
        return (x,)


def write_config(path, num_classes, classes="", data_root="", bands=3):
    path.write_text(f"""
custom_imports = dict(imports=["segmentation", "tests.segmentation.pixel_backbone"])
default_scope = "mmseg"
dataset = dict(
    type="MaskDataset", classes={classes!r}, data_root={data_root!r},
    data_prefix=dict(img_path="img_train", seg_map_path="label_train"),
    pipeline=[
        dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"),
        dict(type="RandomCrop", crop_size=(16, 16)), dict(type="PackSegInputs")])
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type="InfiniteSampler"), dataset=dataset)
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="MaskDataset", classes={classes!r}, data_root={data_root!r}, test_mode=True,
        data_prefix=dict(img_path="img_test", seg_map_path="label_test"),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]))
test_evaluator = dict(type="IoUMetric")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[120.0, 110.0, 100.0], std=[60.0, 55.0, 50.0], bgr_to_rgb=True, size=(16, 16)),
    backbone=dict(type="PixelBackbone"),
    decode_head=dict(
        type="FCNHead", in_channels={bands}, in_index=0, channels={bands}, num_convs=0, concat_input=False,
        dropout_ratio=0,
        num_classes={num_classes}, loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2)
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
param_scheduler = [dict(type="PolyLR", begin=0, end=2, by_epoch=False)]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
log_level = "ERROR"
""")
    return path
