"""Folder layouts in which images and mask files are published or exported: what lies where, by name.

Paths are relative to the data's root, with ``/``. An image and a mask belong together if the named groups of their
patterns agree. Where this comes from, and what could not be confirmed: docs/your_data.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PICTURE = r"\.(?:png|jpe?g|tiff?|bmp|webp)"
_MASK = r"\.(?:png|tiff?|bmp|gif)"
_NAMED = "(?P<split>train|training|val|valid|validation|test|testing)"
SPLIT = rf"(?:{_NAMED}/)?"


@dataclass(frozen=True)
class Layout:
    """One way of keeping images and masks.

    Attributes:
        name: of the format.
        images: patterns of the images' paths; of an image that several find, the first wins.
        masks: patterns of the masks' paths; the first that finds any is used.
        table: class table of the data set; None where it lies beside the data, or must be given.
        table_of_masks: another table, by the pattern of the masks that goes with it.
        by_color: masks are read by their colors.
        tolerance: distance in RGB up to which a color counts as a class's.
        evidence: what else must be there, a glob.
        lists: globs of lists that name a split's files, whose names are those of splits.
        extra_images: there are images without mask, which are no part of the labeled data; a split that has no mask at
            all is never a fault.
        missing_images: some masks are published without their images, which others hold the rights of.
        paired: the first pattern of the images goes with the first of the masks, and so on.
        scene: named groups that a scene has in common; all but the split's by default.
    """

    name: str
    images: tuple[str, ...]
    masks: tuple[str, ...]
    table: str | None = None
    table_of_masks: tuple[str | None, ...] = ()
    by_color: bool = False
    tolerance: float = 0.0
    evidence: str | None = None
    lists: str | None = None
    extra_images: bool = False
    missing_images: bool = False
    paired: bool = False
    scene: tuple[str, ...] = ()


def _below(pattern: str) -> str:
    """A pattern of the end of a path, below any folders."""
    return rf"(?:.*?/)??{pattern}"


# a folder of each kind, with splits in it; splits with both folders in each; folders named after both (train_images,
# and this project's img_train); all in one folder, or in one
# of each split, told apart by endings
_IMAGE_FOLDERS = {
    "folder": "(?:images?|imgs?|rgb|tiles|inputs?|pictures)",
    "ending": "(?:_sat|_image|_img)?",
    "alone": "(?:_sat|_image|_img)?",
}
_MASK_FOLDERS = {
    "folder": "(?:masks?|labels?|annotations?|gts?|ground_?truths?|segmentations?|targets?)",
    "ending": "(?:_mask|_label|_gt|_seg)?",
    "alone": "(?:_mask|_label|_gt|_seg)",
}
_PLACES = (
    rf"%(folder)s/{SPLIT}(?P<stem>.+?)%(ending)s{_PICTURE}",
    rf"{SPLIT}%(folder)s/(?P<stem>.+?)%(ending)s{_PICTURE}",
    rf"{_NAMED}[_-]%(folder)s/(?P<stem>.+?)%(ending)s{_PICTURE}",
    rf"%(folder)s[_-]{_NAMED}/(?P<stem>.+?)%(ending)s{_PICTURE}",
    rf"{SPLIT}(?P<stem>[^/]+?)%(alone)s{_PICTURE}",
)

LAYOUTS = (
    Layout(
        "roboflow-masks",
        images=(rf"{SPLIT}(?P<stem>(?!.*_mask\.)[^/]+){_PICTURE}",),
        masks=(rf"{SPLIT}(?P<stem>[^/]+)_mask\.png",),
        evidence="**/*_classes.csv",
    ),
    Layout(
        "cvat",
        images=tuple(
            rf"{folder}(?P<stem>.+){_PICTURE}"
            for folder in ("JPEGImages/", "images/", "data/", "(?!Segmentation|ImageSets)")
        ),
        masks=(r"SegmentationClass/(?P<stem>.+)\.png",),
        by_color=True,
        evidence="labelmap.txt",
        lists="ImageSets/Segmentation/*.txt",
        extra_images=True,
    ),
    Layout(
        "voc",
        images=(_below(rf"JPEGImages/(?P<stem>[^/]+){_PICTURE}"),),
        masks=(_below(r"SegmentationClass/(?P<stem>[^/]+)\.png"),),
        table="VOC",
        lists="**/ImageSets/Segmentation/*.txt",
        extra_images=True,
    ),
    Layout(
        "mmseg",
        images=(rf"img_dir/{SPLIT}(?P<stem>.+?)(?:_leftImg8bit)?{_PICTURE}",),
        masks=(rf"ann_dir/{SPLIT}(?P<stem>.+?)(?:_gtFine_labelTrainIds|_mask|_label)?{_MASK}",),
    ),
    Layout(
        "loveda",
        images=(r"(?:.*?/)??(?P<split>Train|Val|Test)/(?P<area>Urban|Rural)/images_png/(?P<stem>[^/]+)\.png",),
        masks=(r"(?:.*?/)??(?P<split>Train|Val|Test)/(?P<area>Urban|Rural)/masks_png/(?P<stem>[^/]+)\.png",),
        table="LoveDA",
    ),
    Layout(
        "deepglobe",
        images=(_below(rf"{SPLIT}(?P<stem>\d+)_sat\.jpg"),),
        masks=(_below(rf"{SPLIT}(?P<stem>\d+)_mask\.png"),),
        table="DeepGlobe",
        by_color=True,
        tolerance=221.0,  # to the nearest corner of the color cube, as each channel is cut at 128
    ),
    Layout(
        "potsdam",
        images=tuple(
            _below(rf"{folder}/top_(?P<stem>potsdam_\d+_\d+)_{bands}\.tif")
            for folder, bands in (("2_Ortho_RGB", "RGB"), ("3_Ortho_IRRG", "IRRG"), ("4_Ortho_RGBIR", "RGBIR"))
        ),
        masks=(
            _below(r"5_Labels_all/top_(?P<stem>potsdam_\d+_\d+)_label\.tif"),
            _below(r"5_Labels_for_participants/top_(?P<stem>potsdam_\d+_\d+)_label\.tif"),
            _below(r"5_Labels_\w*no_?Boundary/top_(?P<stem>potsdam_\d+_\d+)_label_noBoundary\.tif"),
        ),
        table="ISPRS",
        by_color=True,
        extra_images=True,
    ),
    Layout(
        "vaihingen",
        images=(_below(r"top/top_mosaic_09cm_(?P<stem>area\d+)\.tif"),),
        masks=(
            _below(r"[^/]*ground_truth_COMPLETE[^/]*/top_mosaic_09cm_(?P<stem>area\d+)\.tif"),
            _below(r"gts_for_participants/top_mosaic_09cm_(?P<stem>area\d+)\.tif"),
            _below(r"gts_eroded_\w+/top_mosaic_09cm_(?P<stem>area\d+)_noBoundary\.tif"),
        ),
        table="ISPRS",
        by_color=True,
        extra_images=True,
    ),
    Layout(
        "openearthmap",
        images=(_below(r"(?P<region>[^/]+)/images/(?P<stem>(?P=region)_\d+)\.tif"),),
        masks=(_below(r"(?P<region>[^/]+)/labels/(?P<stem>(?P=region)_\d+)\.tif"),),
        table="OpenEarthMap",
        lists="**/*.txt",
        extra_images=True,
        missing_images=True,
    ),
    Layout(
        "gid",
        images=tuple(
            _below(rf"{folder}/(?P<stem>[^/]+?)\.tiff?") for folder in ("image_RGB", "Image_+8bit_NirRGB", "Image_RGB")
        ),
        masks=(
            _below(r"label_5classes/(?P<stem>[^/]+)_label\.tif"),
            _below(r"label_15classes/(?P<stem>[^/]+?)(?:_15)?_?label\.(?:tif|png)"),
            _below(r"Annotation_+index/(?P<stem>[^/]+)_24label\.png"),
            _below(r"Annotation_+color/(?P<stem>[^/]+)_24label\.tif"),
        ),
        table="GID5",
        table_of_masks=("GID5", "GID15", "GID:from1", "GID"),
        extra_images=True,
    ),
    Layout(
        "fusu",
        images=(_below(rf"{SPLIT}im(?P<time>[12])/(?P<stem>[^/]+){_PICTURE}"),),
        masks=(
            _below(rf"{SPLIT}im(?P<time>[12])_label/(?P<stem>[^/]+){_MASK}"),
            _below(rf"{SPLIT}label(?P<time>[12])/(?P<stem>[^/]+){_MASK}"),
        ),
        table="FUSU:from1",
        scene=("stem",),
    ),
    Layout(
        "folders",
        images=tuple(pattern % _IMAGE_FOLDERS for pattern in _PLACES),
        masks=tuple(pattern % _MASK_FOLDERS for pattern in _PLACES),
        paired=True,
    ),
)


def compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Patterns of whole paths; small and capital letters are the same."""
    return [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
