# ruff: noqa: C408 (mmseg configs are written with dict())
"""A model of MSeg's universal classes, tested on KITTI's 19 classes; MSeg_master.tsv is MSeg's own taxonomy file."""

_base_ = "mseg/gss-ff_swin-l_512x512_160k_mseg.py"

classes = [
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
]
model = dict(taxonomy="data/mseg/MSeg_master.tsv", domains={"kitti-19": classes}, domain="kitti-19")
test_dataloader = dict(
    dataset=dict(
        metainfo=dict(classes=classes),
        data_root="data/kitti",
        data_prefix=dict(img_path="training/image_2", seg_map_path="training/semantic_19"),
        img_suffix=".png",
    )
)
