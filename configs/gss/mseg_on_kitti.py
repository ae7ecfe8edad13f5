# ruff: noqa: C408 (mmseg configs are written with dict())
"""A model of MSeg's universal classes, tested on one data set alone, KITTI's 19 classes, in any layout."""

_base_ = "mseg/gss-ff_swin-l_512x512_160k_mseg.py"

classes = [
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
]
model = dict(domains={"_delete_": True, "kitti-19": classes}, domain="kitti-19")
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="BaseSegDataset",
        metainfo=dict(classes=classes),
        data_root="data/kitti",
        data_prefix=dict(img_path="training/image_2", seg_map_path="training/semantic_19"),
        img_suffix=".png",
        pipeline={{_base_.test_pipeline}},
        test_mode=True,
    )
)
test_evaluator = dict(_delete_=True, type="IoUMetric", iou_metrics=["mIoU"])
