"""A plug-in for mmseg: our data sets, reader of images and masks, per-class scores, and safe loading of weights.

A config names it in ``custom_imports = dict(imports=["segmentation"])``.
"""

import warnings

from common.yapf_cache import write_grammars_whole

write_grammars_whole()
for message in (
    "Fail to import",
    "Default ``avg_non_ignore``",
    "``build_pixel_sampler`` would",
):  # of compiled operators that nothing here needs, and of mmseg's own calls
    warnings.filterwarnings("ignore", message=message)

from segmentation import (  # noqa: E402
    augmentation,
    backbones,
    bands,
    checkpoint,
    dataset,
    loading,
    logs,
    metric,
    pixel_weights,
    precision,
    published,
    saving,
)

__all__ = [
    "augmentation",
    "backbones",
    "bands",
    "checkpoint",
    "dataset",
    "loading",
    "logs",
    "metric",
    "pixel_weights",
    "precision",
    "published",
    "saving",
]
