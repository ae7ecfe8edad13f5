# ruff: noqa: C408 (mmseg configs are written with dict())
"""Data, augmentation, schedule and run time of every segmentor here; the model comes from the file that builds on it.

Layout of a data set: img_train, label_train, img_test, label_test; masks hold class ids, 255 is ignored.
"""

custom_imports = dict(imports=["segmentation"], allow_failed_imports=False)
default_scope = "mmseg"

crop_size = (512, 512)
train_pipeline = [
    dict(type="ReadImage"),
    dict(type="ReadAnnotations"),
    # sizes relative to the image's own, so that data sets of any tile size share this file
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="Resize", scale_factor=factor, keep_ratio=True)] for factor in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
        ],
    ),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="ReadImage"),
    dict(type="ReadAnnotations"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="MaskDataset",
        classes="FUSU",
        data_root="data/FUSU",
        data_prefix=dict(img_path="img_train", seg_map_path="label_train"),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="MaskDataset",
        classes="FUSU",
        data_root="data/FUSU",
        data_prefix=dict(img_path="img_test", seg_map_path="label_test"),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = dict(type="ClassIoUMetric")

# No validation while training: the last weights count, so that the test set chooses nothing.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000)
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005))
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=40000, by_epoch=False)]

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2000, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
log_processor = dict(by_epoch=False)
log_level = "INFO"
