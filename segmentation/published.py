"""The data set class that published configurations name, so that they train as they are."""

from __future__ import annotations

from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from common.classes import load_class_table

_FUSU = load_class_table("FUSU")
_PUBLISHED_NAMES = {7: "orchard", 8: "park"}  # the published README says 7 park, 8 greenbelt, as our table does


@DATASETS.register_module()
class MyFusuDataset(BaseSegDataset):
    """FUSU as published for mmseg: images ``.jpg``, masks ``.png`` of the same names, ids 0..16, 255 to ignore.

    The published class names contradict the published README in ids 7 and 8. Scores are by id, whatever the names.

    Args:
        img_suffix: of images.
        seg_map_suffix: of masks.
        reduce_zero_label: see mmseg.
        **kwargs: see ``BaseSegDataset``.
    """

    METAINFO = {
        "classes": tuple(_PUBLISHED_NAMES.get(index, name) for index, name in enumerate(_FUSU.names)),
        "palette": _FUSU.palette.tolist(),
    }

    def __init__(
        self, img_suffix: str = ".jpg", seg_map_suffix: str = ".png", reduce_zero_label: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(
            img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label, **kwargs
        )
