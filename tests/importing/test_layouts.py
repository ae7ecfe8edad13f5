"""Folders as other tools export them, and as data sets are published."""

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from importing.tables import own_tables, table_named
from tests.importing.conftest import COLORS, NAMES, known_mask, painted


def palette_png(data, name, ids, colors):
    path = data.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.zeros((256, 3), np.uint8)
    flat[: len(colors)] = colors
    image = Image.fromarray(ids)
    image.putpalette(flat.ravel().tolist())
    image.save(path)


def test_a_palette_in_another_order(data):
    colors = [list(color) for color in COLORS]
    data.write("classes.json", {"classes": list(NAMES), "palette": colors, "mask_colors": colors})
    for number in range(2):
        data.image(f"images/{number}.png", number)
    ids = [np.minimum(known_mask(number), 2) for number in range(2)]  # no pixel without label
    turned = np.array([2, 0, 1], np.uint8)
    palette_png(data, "masks/0.png", turned[ids[0]], [COLORS[1], COLORS[2], COLORS[0]])
    palette_png(data, "masks/1.png", ids[1], COLORS)
    data.imported()
    assert all((data.masks()[str(number)] == ids[number]).all() for number in range(2))
    assert [note for note in data.report["notes"] if "0.png: is read by its palette's colors" in note]


def test_voc(data):
    for number, name in enumerate(("a", "b", "c", "d")):
        data.image(f"VOC2012/JPEGImages/{name}.jpg", number)
    for number, name in enumerate(("a", "b", "c")):
        palette_png(data, f"VOC2012/SegmentationClass/{name}.png", known_mask(number), table_named("VOC").palette)
    data.write("VOC2012/ImageSets/Segmentation/train.txt", "a\n")
    data.write("VOC2012/ImageSets/Segmentation/val.txt", "b\n")
    out = data.imported()
    assert data.report["format"] == "voc" and data.classes()[:2] == ["background", "aeroplane"]
    assert (data.masks()["a"] == known_mask(0)).all() and (out / "label_test" / "b.png").is_file()
    assert set(data.masks()) == {"a", "b"}


def test_cvat(data):
    lines = "".join(f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(NAMES, COLORS, strict=True))
    data.write("labelmap.txt", "# label:color_rgb:parts:actions\n" + lines + "unlabeled:0,0,0::\n")
    data.write("ImageSets/Segmentation/default.txt", "a\nb\n")
    for number, name in enumerate(("a", "b")):
        data.image(f"images/{name}.png", number)
    turned = np.array([2, 0, 1, *[3] * 253], np.uint8)  # CVAT numbers by its own order; colors decide
    palette_png(data, "SegmentationClass/a.png", turned[known_mask(0)], [COLORS[1], COLORS[2], COLORS[0], (0, 0, 0)])
    data.save("SegmentationClass/b.png", painted(known_mask(1)))
    data.imported()
    assert data.report["format"] == "cvat" and data.classes() == list(NAMES)
    assert all((data.masks()[name] == known_mask(number)).all() for number, name in enumerate(("a", "b")))
    data.out = data.out.with_name("second")
    data.write("labelmap.txt", "water;0;0;255\nforest:0,128,0::\n")
    with pytest.raises(InputError, match=r"labelmap.txt line 1: water;0;0;255 is not name:r,g,b:parts:actions"):
        data.imported()


def test_images_that_lie_elsewhere(data):
    for number in range(2):
        data.image(f"../photos/{number}.png", number)
        data.save(f"SegmentationClass/{number}.png", painted(known_mask(number)))
    rows = "".join(f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(NAMES, COLORS, strict=True))
    data.write("labelmap.txt", f"{rows}void:0,0,0::\n")
    with pytest.raises(InputError, match="is in no format"):
        data.imported()
    data.imported("--images", data.root.parent / "photos")
    assert all((data.masks()[str(number)] == known_mask(number)).all() for number in range(2))
    data.out = data.out.with_name("second")
    words = ["--masks", data.root / "SegmentationClass", "--classes", data.root / "labelmap.txt"]
    data.imported(*words, source=data.root.parent / "photos")
    assert all((data.masks()[str(number)] == known_mask(number)).all() for number in range(2))


def test_images_elsewhere_of_one_name_go_by_their_splits(data):
    photos = data.root.parent / "photos"
    for split, number in (("Training", 0), ("val", 1)):
        data.image(f"../photos/{split}/0001.jpg", number)
        data.save(f"labels/{'train' if number == 0 else split}/0001.png", known_mask(number))
    out = data.imported("--images", photos, "--class-names", *NAMES)
    for split, given, number in (("train", "Training", 0), ("test", "val", 1)):
        (image,), (mask,) = out.glob(f"img_{split}/*"), out.glob(f"label_{split}/*")
        assert image.read_bytes() == (photos / given / "0001.jpg").read_bytes()
        assert (np.asarray(Image.open(mask)) == known_mask(number)).all()
    data.out = data.out.with_name("second")
    data.image("../photos/val/0001.tif", 1)
    with pytest.raises(InputError, match=r"val/0001.jpg and .*val/0001.tif have the name of .*labels/val/0001.png"):
        data.imported("--images", photos, "--class-names", *NAMES)
    for name in ("0001.tif", "0001.jpg"):
        (photos / "val" / name).unlink()
    with pytest.raises(InputError, match=r"Training/0001.jpg has the name of several masks"):
        data.imported("--images", photos, "--class-names", *NAMES)


def test_two_folders_keep_their_splits(data):
    for number, (split, name) in enumerate((("train", "a"), ("train", "b"), ("val", "a"))):
        data.image(f"photos/{split}/{name}.jpg", number)
        data.save(f"drawn/{split}/{name}_mask.png", known_mask(number))
    words = ["--images", data.root / "photos", "--masks", data.root / "drawn", "--class-names", *NAMES]
    out = data.imported(*words)
    assert [path.stem for path in sorted(out.glob("label_*/*"))] == ["val_a", "train_a", "train_b"]
    assert (data.masks()["val_a"] == known_mask(2)).all()
    data.out = data.out.with_name("second")
    data.image("photos/val/a.png", 2)
    with pytest.raises(InputError, match=r"images .*photos: .*val/a.jpg and .*val/a.png have one name; remove one"):
        data.imported(*words)


@pytest.mark.parametrize(("folder", "named"), [("", False), ("", True), ("train/", False)])
def test_one_folder_with_an_image_that_nobody_has_labeled(data, folder, named):
    for name, number in (("a_image", 0), ("b", 1), ("c", 2)):
        data.image(f"{folder}{name}.png", number)
    for name, number in (("a", 0), ("b", 1)):
        data.save(f"{folder}{name}_mask.png", known_mask(number))
    words = ["--class-names", *NAMES, *(["--images", data.root, "--masks", data.root] if named else [])]
    with pytest.raises(InputError, match=r"c.png: has no mask; add them"):
        data.imported(*words)
    data.imported(*words, "--unlabeled", "skip")
    assert set(data.masks()) == {"a", "b"} and (data.masks()["a"] == known_mask(0)).all()
    images = {path.stem: np.asarray(Image.open(path)) for path in data.out.glob("img_*/*")}
    assert (images["a"] == np.asarray(Image.open(data.root / f"{folder}a_image.png"))).all()


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("img_train", "label_train"),
        ("train_images", "train_masks"),
        ("train/images", "train/gt"),
        ("rgb/val", "labels/val"),
    ],
)
def test_folders_of_splits(data, images, masks):
    for number in range(2):
        data.image(f"{images}/{number}.png", number)
        data.save(f"{masks}/{number}.png", known_mask(number))
    data.imported("--class-names", *NAMES)
    assert all((data.masks()[str(number)] == known_mask(number)).all() for number in range(2))


def test_mmseg(data):
    for split, number in (("train", 0), ("val", 1)):
        data.image(f"img_dir/{split}/x{number}.jpg", number)
        data.save(f"ann_dir/{split}/x{number}.png", known_mask(number))
    out = data.imported("--class-names", *NAMES)
    assert data.report["format"] == "mmseg"
    assert (np.asarray(Image.open(out / "label_test" / "x1.png")) == known_mask(1)).all()


def counted_from_one(number):
    ids = known_mask(number)
    return np.where(ids == 255, 0, ids + 1).astype(np.uint8)


# images, masks, what the masks hold, the splits; names of what is made
PUBLISHED = {
    "loveda": (
        ("Train/Urban/images_png/0.png", "Train/Rural/images_png/0.png", "Val/Urban/images_png/9.png"),
        ("Train/Urban/masks_png/0.png", "Train/Rural/masks_png/0.png", "Val/Urban/masks_png/9.png"),
        counted_from_one,
        "LoveDA",
        {"urban_0": "train", "rural_0": "train", "urban_9": "test"},
    ),
    "openearthmap": (
        ("aachen/images/aachen_1.tif", "aachen/images/aachen_2.tif"),
        ("aachen/labels/aachen_1.tif", "aachen/labels/aachen_2.tif"),
        counted_from_one,
        "OpenEarthMap",
        {"aachen_1": "train", "aachen_2": "val"},
    ),
    "deepglobe": (
        ("train/12_sat.jpg", "train/13_sat.jpg", "valid/14_sat.jpg"),
        ("train/12_mask.png", "train/13_mask.png"),
        lambda number: np.clip(painted(known_mask(number), colors("DeepGlobe")), 20, 200),
        "DeepGlobe",
        {"12": None, "13": None},
    ),
    "potsdam": (
        ("2_Ortho_RGB/top_potsdam_2_10_RGB.tif", "2_Ortho_RGB/top_potsdam_2_11_RGB.tif", "4_Ortho_RGBIR/x.tif"),
        ("5_Labels_all/top_potsdam_2_10_label.tif", "5_Labels_all/top_potsdam_2_11_label.tif"),
        lambda number: painted(known_mask(number), colors("ISPRS")),
        "ISPRS",
        {"potsdam_2_10": None, "potsdam_2_11": None},
    ),
    "vaihingen": (
        ("top/top_mosaic_09cm_area1.tif", "top/top_mosaic_09cm_area3.tif", "top/top_mosaic_09cm_area4.tif"),
        ("gts_for_participants/top_mosaic_09cm_area1.tif", "gts_for_participants/top_mosaic_09cm_area3.tif"),
        lambda number: painted(known_mask(number), colors("ISPRS")),
        "ISPRS",
        {"area1": None, "area3": None},
    ),
    "gid": (
        ("image_RGB/GF2_a-MSS1.tif", "image_RGB/GF2_b-MSS1.tif"),
        ("label_5classes/GF2_a-MSS1_label.tif", "label_5classes/GF2_b-MSS1_label.tif"),
        lambda number: painted(known_mask(number), colors("GID5")),
        "GID5",
        {"GF2_a-MSS1": None, "GF2_b-MSS1": None},
    ),
    "gid of 24": (
        ("Image__8bit_NirRGB/GF2_a-MSS1.tif", "Image__8bit_NirRGB/GF2_b-MSS1.tif"),
        ("Annotation__index/GF2_a-MSS1_24label.png", "Annotation__index/GF2_b-MSS1_24label.png"),
        counted_from_one,
        "GID",
        {"GF2_a-MSS1": None, "GF2_b-MSS1": None},
    ),
    "fusu": (
        ("im1/6_255.png", "im2/6_255.png", "im1/7_1.png", "im2/7_1.png"),
        ("im1_label/6_255.png", "im2_label/6_255.png", "im1_label/7_1.png", "im2_label/7_1.png"),
        counted_from_one,
        "FUSU",
        {"6_255_1": None, "6_255_2": None, "7_1_1": None, "7_1_2": None},
    ),
}


def colors(name):
    return [tuple(color) for color in table_named(name).palette[:3].tolist()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_sets_as_they_are_published(data, name):
    images, masks, held, table, expected = PUBLISHED[name]
    for number, path in enumerate(images):
        data.image(path, number)
    for number, path in enumerate(masks):
        data.save(path, held(number))
    if name == "openearthmap":
        for split, lines in (("train", "aachen_1.tif"), ("val", "aachen_2.tif"), ("test", "x_1.tif")):
            data.write(f"{split}.txt", f"{lines}\n")
        data.save("xbd/labels/xbd_1.tif", held(0))  # its image is another's to give
    out = data.imported()
    assert data.report["format"] == name.split()[0]
    assert data.classes() == list(table_named(table).names)
    made = data.masks()
    assert set(made) == set(expected)
    for number, written in enumerate(expected):
        assert (made[written] == known_mask(number)).all(), written
        split = "test" if expected[written] == "val" else expected[written]
        assert split is None or (out / f"label_{split}" / f"{written}.png").is_file()
    if name == "fusu":  # two dates of a place stay together
        splits = {path.stem: path.parent.name for path in out.glob("label_*/*.png")}
        assert splits["6_255_1"] == splits["6_255_2"] != splits["7_1_1"] == splits["7_1_2"]


def test_what_fits_nothing_or_several(data):
    data.write("notes.txt", "x")
    with pytest.raises(InputError, match=r"is in no format that is known here \(it holds \[\"notes.txt\"\]\)"):
        data.imported()
    with pytest.raises(InputError, match="holds nothing in the format coco"):
        data.imported("--from", "coco")
    data.image("img_dir/train/a.png")
    data.save("ann_dir/train/a.png", known_mask(0))
    data.image("top/top_mosaic_09cm_area1.tif")
    data.save("gts_for_participants/top_mosaic_09cm_area1.tif", painted(known_mask(0), colors("ISPRS")))
    with pytest.raises(InputError, match="mmseg, vaihingen fit; say which with format"):
        data.imported()
    data.imported("--from", "vaihingen")
    assert set(data.masks()) == {"area1"}
    with pytest.raises(InputError, match="lies in source"):
        data.imported("--out", data.root / "inside")


def test_the_tables_that_come_with_it():
    assert {name: len(table_named(name)) for name in own_tables()} == {
        "deepglobe": 6,
        "gid15": 15,
        "gid5": 5,
        "isprs": 6,
        "openearthmap": 8,
        "voc": 21,
    }
