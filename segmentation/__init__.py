"""A plug-in for mmseg: our data sets, reader of images and masks, per-class scores, and safe loading of weights.

A config names it in ``custom_imports = dict(imports=["segmentation"])``.
"""

import warnings

for message in (
    "Fail to import",
    "Default ``avg_non_ignore``",
):  # of compiled operators that nothing here needs, and of a default of mmseg's
    warnings.filterwarnings("ignore", message=message)

from segmentation import checkpoint, dataset, loading, metric, published, saving  # noqa: E402

__all__ = ["checkpoint", "dataset", "loading", "metric", "published", "saving"]
