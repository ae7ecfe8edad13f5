"""Kinds of files x commands: what one takes, all take, as the same ids and pixels; what one refuses, all refuse."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cldm.data.pairs import PairedImages
from common.classes import load_class_table
from common.errors import InputError
from common.images import IGNORE, read_image
from common.sound_pairs import sound_pairs
from evaluation.copies import thumbnail
from gss.palette import palette_labels
from tests.conftest import SHARED
from tests.odd_files import FILES, IDS, PIXELS, encoded
from tests.segmentation import pixel_backbone

# as the reader sets it, which pytest undoes; and mmseg's loss, of which nothing is asked here
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.", "ignore:Default ``avg_non_ignore``")

COLORS = np.array([[0, 0, 0], [200, 10, 0], [7, 7, 7], [0, 90, 250]], np.uint8)  # of the classes; two are gray
NOTHING = [255, 0, 255]  # the table's color of pixels to ignore
TABLE = {"classes": list("abcd"), "palette": COLORS.tolist(), "ignore_color": NOTHING, "ignore_index": 9}
_HOLES = np.where(IDS == 3, 9, IDS).astype(np.uint8)
_IGNORED = np.where(IDS == 3, IGNORE, IDS).astype(np.uint8)
_PAINTED = COLORS[IDS]
_PAINTED_HOLES = np.where((IDS == 3)[..., None], NOTHING, _PAINTED).astype(np.uint8)
_STRANGE = _PAINTED.copy()
_STRANGE[:2, :3] = (1, 2, 3)
_STRANGE[9, 9] = (4, 5, 6)

# masks beside those of FILES: suffix, bytes, what is said of it, or the class ids that it holds
MASKS = {
    "the table's id to ignore": (".png", encoded(_HOLES), _IGNORED),
    "the same in 16 bits": (".png", encoded(_HOLES.astype(np.uint16)), _IGNORED),
    "the same as TIFF": (".tif", encoded(_HOLES, "TIFF"), _IGNORED),
    "the same with a palette": (".png", encoded(_HOLES, palette=[9] * 768), _IGNORED),
    "the same in three equal channels": (".png", encoded(np.stack([_HOLES] * 3, -1)), _IGNORED),
    "another id to ignore": (
        ".png",
        encoded(np.where(IDS == 3, 255, IDS).astype(np.uint8)),
        "255 are not in 0..3 or 9",
    ),
    "colors": (".png", encoded(_PAINTED), IDS),
    "colors as TIFF": (".tif", encoded(_PAINTED, "TIFF"), IDS),
    "colors with the one to ignore": (".png", encoded(_PAINTED_HOLES), _IGNORED),
    "colors with a palette": (".png", encoded(IDS, palette=COLORS.ravel().tolist()), IDS),
    "colors of no class": (".png", encoded(_STRANGE), "(1, 2, 3) on 6 px, (4, 5, 6) on 1 px"),
    "gray colors alone": (".png", encoded(np.full((64, 64, 3), 7, np.uint8)), np.full_like(IDS, 2)),
    "an image": (".png", encoded(PIXELS), "has three channels that differ"),
}


def _kinds():
    """Name: image and mask as (suffix, bytes), what is said, the ids that the mask holds."""
    plain = {"img": (".png", encoded(PIXELS)), "label": (".png", encoded(IDS))}
    for name, (suffix, data, as_image, as_mask) in FILES.items():
        yield f"image, {name}", {**plain, "img": (suffix, data)}, as_image, IDS
        if suffix != ".jpg":  # JPEGs are not looked for in a folder of masks
            yield f"mask, {name}", {**plain, "label": (suffix, data)}, as_mask, IDS % 2 if "1 bit" in name else IDS
    for name, (suffix, data, holds) in MASKS.items():
        says = holds if isinstance(holds, str) else None
        yield f"mask, {name}", {**plain, "label": (suffix, data)}, says, None if says else holds


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of pairs, one of each kind, its list, class table and segmentor's config; kinds by name of the files."""
    root, kinds, lines = tmp_path_factory.mktemp("kinds"), {}, []
    for number, (title, files, says, ids) in enumerate(_kinds()):
        name = f"k{number:03}"
        kinds[name] = SimpleNamespace(title=title, says=says, ids=ids, of_mask=title.startswith("mask"))
        for part, (suffix, data) in files.items():
            path = root / part / f"{name}{suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            setattr(kinds[name], part, path)
        image, mask = (f"{path.parent.name}/{path.name}" for path in (kinds[name].img, kinds[name].label))
        lines.append(json.dumps({"source": mask, "target": image, "ref_image": image, "prompt": "p"}))
    (root / "list.json").write_text("\n".join(lines))
    table = root / "classes.json"
    table.write_text("\ufeff" + json.dumps(TABLE))
    config = pixel_backbone.write_config(root / "config.py", 4, str(table), str(root))
    return SimpleNamespace(root=root, table=str(table), config=config, kinds=kinds)


def by_list(world, picture, **options):
    """What the data set of training and synthesis makes of the list: refusals, class ids and pixels by name."""
    data = PairedImages(world.root, world.root / "list.json", classes=world.table, skip_invalid=True, **options)
    names, taken = list(world.kinds), {}
    for sample in (data[index] for index in range(len(data))):
        pixels = ((sample[picture].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        taken[sample["name"]] = ((sample["hint"][0].numpy() * 255).round().astype(np.uint8), pixels)
    return {names[fault.line - 1]: fault.reason for fault in data.faults}, taken


def by_folders(world, labels, same_size):
    """What filter, re-sampling and evaluation make of the folders, and how many pixels of each class they count."""
    where = (world.root / "img", world.root / "label")
    sound = sound_pairs(*where, ("a", "b"), labels, same_size=same_size, skip_invalid=True)
    for pair, found in zip(sound.pairs, sound.checked, strict=True):
        assert (found.pixels == np.bincount(world.kinds[pair.name].ids.ravel(), minlength=256)[:4]).all(), pair
    refused = {re.findall(r"/(k\d\d\d)\.", line)[0]: line for line in sound.left_out}
    return refused, {pair.name: (labels.read(pair.mask), read_image(pair.image)) for pair in sound.pairs}


def by_segmentor(world):
    """What mmseg's data set, its pipeline replaced by ours, makes of the folders, item by item."""
    from segmentation.config import load_config
    from segmentation.dataset import DATASETS

    steps = load_config(str(world.config)).test_dataloader.dataset.pipeline[:2]
    prefix = {"img_path": "img", "seg_map_path": "label"}
    made = {"classes": world.table, "data_root": str(world.root), "data_prefix": prefix, "test_mode": True}
    data, refused, taken = DATASETS.build({"type": "MaskDataset", "pipeline": steps, **made}), {}, {}
    for index in range(len(data)):
        name = re.findall(r"/(k\d\d\d)\.", data.get_data_info(index)["img_path"])[0]
        try:
            item = data[index]
            taken[name] = (item["gt_seg_map"], item["img"][..., ::-1])
        except InputError as error:
            refused[name] = str(error)
    return refused, taken


def labels_of_config(world):
    from segmentation.config import load_config
    from segmentation.labels import label_rule

    return label_rule(load_config(str(world.config)), 4).labels()


COMMANDS = {
    "train": lambda world: by_list(world, "jpg"),
    "inference": lambda world: by_list(world, "ssl", use_reference=True),
    "filter, evaluate_samples": lambda world: by_folders(world, labels_of_config(world), True),
    "resample": lambda world: by_folders(world, load_class_table(world.table).labels, False),
    "segmentor, compare": by_segmentor,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_pairs(world, command):
    refused, taken = COMMANDS[command](world)
    for name, kind in world.kinds.items():
        if kind.says is not None:
            assert kind.says in refused.get(name, "taken"), kind.title
        else:
            assert name in taken, f"{kind.title}: {refused[name]}"
            ids, pixels = taken[name]
            assert (ids == kind.ids).all() and (pixels == read_image(kind.img)).all(), kind.title


def predict(path):
    from segmentation.prediction import check_images

    check_images([path])


@pytest.mark.parametrize("look", [predict, thumbnail], ids=["predict", "evaluate_samples --train-img-path"])
def test_images_alone(world, look):
    for kind in world.kinds.values():
        if kind.of_mask or kind.says is None:
            look(kind.img)
        else:
            with pytest.raises(InputError) as error:
                look(kind.img)
            assert kind.says in str(error.value), kind.title


def test_masks_alone(world):
    """As the searches for palettes and the training of a dVAE read them: by the table, and by it as a palette."""
    for labels in (load_class_table(world.table).labels, palette_labels(world.table, 4)):
        for kind in world.kinds.values():
            if not kind.of_mask or kind.says is None:
                assert (labels.read(kind.label) == kind.ids).all(), kind.title
            else:
                with pytest.raises(InputError) as error:
                    labels.read(kind.label)
                assert kind.says in str(error.value), kind.title


def test_colors_where_id_0_is_to_be_ignored(tmp_path):
    """Under mmseg's reduce_zero_label, class k has id k + 1 in files; a color goes on to stand for its class."""
    (tmp_path / "classes.json").write_text(json.dumps(TABLE))
    labels = load_class_table(str(tmp_path / "classes.json")).labels.reducing_zero(True)
    for array, ids in ((_PAINTED, IDS), (IDS + 1, IDS), (_PAINTED_HOLES, _IGNORED)):
        Image.fromarray(array).save(tmp_path / "a.png")
        assert (labels.read(tmp_path / "a.png") == ids).all()


def test_a_gray_mask_that_is_ids_and_colors_alike_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "palette": [[9, 9, 9], [0, 0, 0]]}))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="ids and colors of"):
        load_class_table(str(tmp_path / "classes.json")).labels.read(tmp_path / "a.png")


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="the folder of cases is not at hand")
@pytest.mark.parametrize(
    ("path", "table", "says"),
    [
        ("masks/gid_16bit.png", "GID", None),
        ("masks/three_equal_channels.png", "MBRSC", None),
        ("masks/all_ignored.png", "MBRSC", None),
        ("exif/a.png", "MBRSC", None),
        ("images/grey16.png", None, "has 16 bits a channel"),
        ("images/palette_image.png", None, None),
        ("images/truncated.jpg", None, "cannot be read"),
        ("exif/a.jpg", None, None),
    ],
)
def test_cases_of_public_reports(path, table, says):
    read = read_image if table is None else load_class_table(table).labels.read
    if says is None:
        assert read(SHARED / "cases" / path).dtype == np.uint8
    else:
        with pytest.raises(InputError, match=says):
            read(SHARED / "cases" / path)
