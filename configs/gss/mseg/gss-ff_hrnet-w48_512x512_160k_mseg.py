# ruff: noqa: C408 (mmseg configs are written with dict())
"""GSS-FF with a single fusion, HRNet-W48, MSeg."""

_base_ = ["../_base_/ff_hrnet-w48.py", "../_base_/data_mseg.py"]

model = dict(
    type="MultiDomainEncoderDecoder",
    taxonomy="data/mseg_dataset/mseg-api/mseg/class_remapping_files/MSeg_master.tsv",
    domains=["camvid-11", "kitti-19", "pascal-context-60", "scannet-20", "voc2012", "wilddash-19"],
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(type="GenerativeSegHeadFFSingleFusion", num_classes=194, palette="published_mseg"),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.00012))
train_cfg = dict(max_iters=160000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
