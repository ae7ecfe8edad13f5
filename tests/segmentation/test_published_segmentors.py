"""Segmentors as published: their configs, validation while training, and trainings of any length."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation.config import load_config
from segmentation.config_changes import set_max_iters
from tests.conftest import ROOT


@pytest.mark.parametrize(("name", "iterations", "repeat"), [("base", 80000, 1), ("joint", 240000, 10)])
def test_published_values(name, iterations, repeat):
    config = load_config(str(ROOT / f"demo/mmseg/{name}_config.py"))
    assert config.train_cfg == {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": 2000}
    assert config.param_scheduler[0].end == iterations and config.env_cfg.cudnn_benchmark
    assert config.train_dataloader.batch_size == 16 and config.train_dataloader.dataset.get("repeat", 1) == repeat
    resize, crop = config.train_dataloader.dataset.pipeline[2:4]
    assert (resize.scale, resize.ratio_range, crop.crop_size) == ((1024, 256), (0.5, 2.0), (512, 512))
    kinds = [step.type for step in config.test_dataloader.dataset.pipeline]
    assert kinds == ["ReadImage", "Resize", "ReadAnnotations", "PackSegInputs"]
    assert config.default_hooks.checkpoint.save_best == "mIoU" and len(config.tta_pipeline[1].transforms[0]) == 6


PUBLISHED = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
crop_size = (512, 512)
data_root = 'FUSU'
dataset_type = 'MyFusuDataset'
model = dict(
    type='EncoderDecoder', pretrained='open-mmlab://resnet50_v1c',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                           bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=crop_size),
    backbone=dict(type='ResNetV1c', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), dilations=(1, 1, 2, 4),
                  strides=(1, 2, 1, 1), norm_cfg=norm_cfg, norm_eval=False, style='pytorch', contract_dilation=True),
    decode_head=dict(type='PSPHead', in_channels=2048, in_index=3, channels=512, pool_scales=(1, 2, 3, 6),
                     dropout_ratio=0.1, num_classes=18, norm_cfg=norm_cfg, align_corners=False,
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(type='FCNHead', in_channels=1024, in_index=2, channels=256, num_convs=1, concat_input=False,
                        dropout_ratio=0.1, num_classes=18, norm_cfg=norm_cfg, align_corners=False,
                        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
max_iterations = 240000
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(1024, 256), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
        [dict(type='RandomFlip', prob=0., direction='horizontal'),
         dict(type='RandomFlip', prob=1., direction='horizontal')],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
real = dict(type='RepeatDataset', times=10, dataset=dict(
    type=dataset_type, data_root=data_root, pipeline=train_pipeline,
    data_prefix=dict(img_path='img_train', seg_map_path='label_train')))
synthesized = dict(type='RepeatDataset', times=1, dataset=dict(
    type=dataset_type, data_root='resampled_dataset', pipeline=train_pipeline,
    data_prefix=dict(img_path='resampled_img', seg_map_path='resampled_label')))
train_dataloader = dict(batch_size=16, num_workers=4, persistent_workers=True,
                        sampler=dict(type='InfiniteSampler', shuffle=True),
                        dataset=dict(type='ConcatDataset', datasets=[real, synthesized]))
val_dataloader = dict(batch_size=1, num_workers=4, persistent_workers=True,
                      sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(type=dataset_type, data_root=data_root, pipeline=test_pipeline,
                                   data_prefix=dict(img_path='img_test', seg_map_path='label_test')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
default_scope = 'mmseg'
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
               dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
launcher = 'pytorch'
load_from = None
resume = False
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iterations, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iterations, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=1000, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2000, save_best='mIoU', max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'), visualization=dict(type='SegVisualizationHook'))
"""
SMALL = [
    "model.backbone.base_channels=2",
    "model.backbone.stem_channels=2",
    "model.decode_head.in_channels=64",
    "model.decode_head.channels=4",
    "model.auxiliary_head.in_channels=32",
    "model.auxiliary_head.channels=4",
    "train_dataloader.batch_size=2",
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
    "test_dataloader.num_workers=0",
    "log_level=ERROR",
    "val_dataloader.dataset.pipeline.1.scale=(64,64)",
    "test_dataloader.dataset.pipeline.1.scale=(64,64)",
]


def test_a_published_config_trains_as_it_is(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for images, masks in (
        ("FUSU/img_train", "FUSU/label_train"),
        ("FUSU/img_test", "FUSU/label_test"),
        ("resampled_dataset/resampled_img", "resampled_dataset/resampled_label"),
    ):
        for folder, suffix, shape in ((images, "jpg", (32, 32, 3)), (masks, "png", (32, 32))):
            (tmp_path / folder).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 17, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / f"{index}.{suffix}")
    (tmp_path / "mmseg").mkdir()
    (tmp_path / "mmseg/joint_config.py").write_text(PUBLISHED)
    options = ["mmseg/joint_config.py", "--work-dir", "work"]
    assert "--pretrained open-mmlab://resnet50_v1c" in cli.refused("segmentor", "train", *options)
    said = cli(
        "segmentor",
        "train",
        *options,
        "--pretrained",
        "none",
        "--crop-size",
        64,
        "--cfg-options",
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        *SMALL,
    )
    assert "on the test images themselves" in said and "best on the validation images" in said
    weights = torch.load(tmp_path / "work/iter_2.pth", weights_only=False)
    assert weights["state_dict"]["decode_head.conv_seg.bias"].shape == (18,)
    assert weights["meta"]["dataset_meta"]["classes"][7:9] == ("orchard", "park")
    cli("segmentor", "test", *options, "--load-from", "work/iter_2.pth", "--cfg-options", *SMALL)
    assert list(json.loads((tmp_path / "work/metrics.json").read_text())["classes"])[7] == "orchard"


def test_validation_chooses_weights_and_resumes_exactly(chain, cli):
    for part in ("img", "label"):
        shutil.copytree(chain.root / f"{part}_test", chain.root / f"{part}_val")
    options = ["train", chain.config, "--val-split", "val", "--best", "OA"]
    said = cli("segmentor", *options, "--max-iters", 4, "--work-dir", chain.root / "whole", "--tensorboard")
    assert "test images themselves" not in said
    assert list((chain.root / "whole").rglob("events.out.tfevents*"))
    whole = [path.name for path in (chain.root / "whole").glob("best_aAcc_iter_*.pth")]
    assert len(whole) == 1
    resumed = chain.root / "parts"
    short = ["--work-dir", resumed, "--cfg-options", "param_scheduler.0.end=4"]
    cli("segmentor", *options, *short)
    cli("segmentor", *options, *short, "--max-iters", 4, "--resume")
    assert [path.name for path in resumed.glob("best_aAcc_iter_*.pth")] == whole
    ours, theirs = (torch.load(chain.root / folder / whole[0], weights_only=False) for folder in ("whole", "parts"))
    assert all(torch.equal(value, theirs["state_dict"][key]) for key, value in ours["state_dict"].items())
    assert "--val-split" in cli.refused("segmentor", "train", chain.config, "--best", "OA", "--work-dir", resumed)


def test_schedules_fit_any_length(capsys):
    for count, spans in ((3, [("PolyLR", 0, 3)]), (1000, [("LinearLR", 0, 38), ("PolyLR", 38, 1000)])):
        config = load_config(str(ROOT / "configs/mmseg/segformer_b0.py"))
        set_max_iters(config, count)
        assert [(part["type"], part["begin"], part["end"]) for part in config.param_scheduler] == spans
        assert capsys.readouterr().err.count("\n") == 1


def test_outputs_beyond_the_classes(chain, cli):
    assert "at least one output each" in cli.refused("segmentor", "train", chain.config, "--head-classes", 4)
    cli("segmentor", "train", chain.config, "--head-classes", 6, "--work-dir", chain.root / "work", "--max-iters", 1)
    weights = torch.load(chain.root / "work/iter_1.pth", weights_only=False)
    assert weights["state_dict"]["decode_head.conv_seg.bias"].shape == (6,)
