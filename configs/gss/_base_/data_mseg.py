# ruff: noqa: C408 (mmseg configs are written with dict())
"""MSeg: seven training sets relabeled to 194 universal classes, six test sets with classes of their own.

The data lie as MSeg's scripts put them (https://github.com/mseg-dataset/mseg-api), that project itself, or a link to
it, at data/mseg_dataset/mseg-api: it has the taxonomy, the names of the classes and the lists of the test sets.
"""

taxonomy = "data/mseg_dataset/mseg-api/mseg/class_remapping_files/MSeg_master.tsv"
domains = ["camvid-11", "kitti-19", "pascal-context-60", "scannet-20", "voc2012", "wilddash-19"]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(
        type="PackSegInputs",
        meta_keys=(
            *("img_path", "seg_map_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip"),
            *("flip_direction", "reduce_zero_label", "domain"),
        ),
    ),
]
train_sets = [
    dict(
        type="RepeatDataset",
        times=times,
        dataset=dict(
            type="MSegDataset",
            dataset_name=name,
            taxonomy=taxonomy,
            data_root=f"data/mseg_dataset/{root}",
            data_prefix=dict(img_path=images, seg_map_path=masks),
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            img_prefix=img_prefix,
            seg_map_prefix=seg_map_prefix,
            pipeline=train_pipeline,
        ),
    )
    for times, name, root, images, masks, img_suffix, seg_map_suffix, img_prefix, seg_map_prefix in (
        (
            *(6, "ade20k-150-relabeled", "ADE20K/ADEChallengeData2016", "images/training"),
            *("annotations_semseg150_relabeled/training", ".jpg", ".png", "", ""),
        ),
        (
            *(17, "bdd-relabeled", "BDD/bdd100k", "seg/images/train"),
            *("seg_relabeled/labels/train", ".jpg", "_train_id.png", "", ""),
        ),
        (
            *(40, "cityscapes-19-relabeled", "Cityscapes", "leftImg8bit/train"),
            *("gtFine_19cls_relabeled/train", "_leftImg8bit.png", "_gtFine_labelIds.png", "", ""),
        ),
        (
            *(1, "coco-panoptic-133-relabeled", "COCOPanoptic", "images/train2017"),
            *("semantic_relabeled133/train2017", ".jpg", ".png", "", ""),
        ),
        (
            *(17, "idd-39-relabeled", "IDD/IDD_Segmentation", "leftImg8bit/train"),
            *("gtFine39_relabeled/train", "_leftImg8bit.png", "_gtFine_labelids.png", "", ""),
        ),
        (
            *(7, "mapillary-public65-relabeled", "MapillaryVistasPublic", "training/images"),
            *("training_semseg65_relabeled/labels", ".jpg", ".png", "", ""),
        ),
        (
            *(24, "sunrgbd-37-relabeled", "SUNRGBD", "image/train"),
            *("semseg-relabeled37/train", ".jpg", ".png", "img-", "00"),
        ),
    )
]
mask_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
mask_sets = [dict(one["dataset"], pipeline=mask_pipeline, test_mode=True) for one in train_sets]  # to look at masks
test_sets = [
    dict(
        type="MSegDataset",
        dataset_name=name,
        taxonomy=taxonomy,
        universal=False,
        split="val",
        data_root=f"data/mseg_dataset/{root}",
        pipeline=test_pipeline,
        test_mode=True,
    )
    for name, root in zip(
        domains,
        ("Camvid", "KITTI", "PASCAL_Context", "ScanNet/scannet_frames_25k", "PASCAL_VOC_2012", "WildDash"),
        strict=True,
    )
]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="ConcatDataset", datasets=train_sets),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ConcatDataset", datasets=test_sets, ignore_keys=["classes", "palette"]),
)
test_evaluator = dict(type="MSegMetric", taxonomy=taxonomy, domains=domains)
