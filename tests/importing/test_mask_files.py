import json

import numpy as np
import pytest
from PIL import Image

from cldm.data.manifest import read_manifest
from common.classes import load_class_table
from common.command import read_options
from common.errors import InputError
from importing.checks.options import CheckOptions
from importing.checks.run import check_data
from importing.splits import scene_of
from tests.conftest import SHARED
from tests.importing.conftest import COLORS, NAMES, known_mask, painted

TABLE = {"classes": list(NAMES), "palette": [list(color) for color in COLORS], "mask_ignore_colors": [[0, 0, 0]]}
TABLE["mask_colors"] = TABLE["palette"]


def fill(data, masks, ids=known_mask, ending="png", **how):
    for number in range(3):
        data.image(f"images/{number}.png", number)
        values = masks(ids(number))
        data.save(f"masks/{number}.{ending}", values, **how)


def same(data):
    made = data.masks()
    assert len(made) == 3
    assert all((made[str(number)] == known_mask(number)).all() for number in range(3))


def test_colors_by_a_table_beside_them(data):
    fill(data, painted)
    data.write("classes.json", TABLE)
    out = data.imported("--split", 0.7, 0.3)
    same(data)
    assert data.classes() == list(NAMES) and data.report["images"] == {"train": 2, "test": 1, "reference": 0}
    assert all(line["prompt"] == "a satellite image of water forest road" for line in data.lines())
    first = data.lines()[0]
    assert (out / first["target"]).read_bytes() == (data.root / "images" / f"{first['target'][-5]}.png").read_bytes()
    with pytest.raises(InputError, match="is there already, and nothing is overwritten"):
        data.imported()


def test_colors_by_a_csv_and_with_nearby_ones(data):
    fill(data, lambda ids: np.minimum(painted(ids), 252) + np.uint8(3))
    data.write("class_dict.csv", "name,r,g,b\nwater,0,0,255\nforest,0,128,0\nroad,200,200,200\nunknown,0,0,0\n")
    with pytest.raises(InputError, match=r"colors that the class table .*\(203, 203, 203\) on 144 px"):
        data.imported()
    assert not data.out.exists()
    data.imported("--color-tolerance", 8)
    same(data)


def test_transparent_pixels_have_no_color(data):
    fill(data, lambda ids: np.dstack([painted(ids), np.where(ids == 255, 0, 255).astype(np.uint8)]))
    data.write("classes.json", TABLE)
    with pytest.raises(InputError, match=r"png: has transparent pixels; write them in a color that is to be ignored"):
        data.imported()
    fill(data, lambda ids: np.dstack([painted(ids), np.full_like(ids, 255)]))
    data.imported()
    same(data)


def test_two_classes_of_one_color_are_refused(data):
    fill(data, painted)
    for name, text in (
        ("labelmap.txt", "# label:color_rgb:parts:actions\nwater:0,0,255::\nforest:0,0,255::\n"),
        ("classes.json", json.dumps({"classes": ["water", "forest"], "palette": [[0, 0, 255], [0, 0, 255]]})),
    ):
        path = data.write(name, text)
        with pytest.raises(InputError, match=r"water and forest have the color \[0, 0, 255\]"):
            data.imported()
        path.unlink()


def test_names_alone_do_not_say_what_colors_are(data):
    fill(data, painted)
    data.write("labels.txt", "\n".join(NAMES))
    with pytest.raises(InputError, match=r"labels.txt: names no colors, and the masks are pictures in colors"):
        data.imported()


def test_a_palette_that_is_learned_is_shown_first(data, capsys):
    fill(data, painted)
    with pytest.raises(InputError, match=r"made_classes.json proposes those above"):
        data.imported()
    assert "(200, 200, 200)" in capsys.readouterr().out and not data.out.exists()
    proposal = data.out.with_name("made_classes.json")
    content = json.loads(proposal.read_text())
    named = dict(zip(("0000ff", "008000", "c8c8c8"), NAMES, strict=True))
    order = [next((name for color, name in named.items() if color in text), "none") for text in content["classes"]]
    black = order.index("none")
    content["mask_ignore_colors"] = [content["mask_colors"].pop(black)]
    content["palette"].pop(black)
    order.pop(black)
    content["classes"] = order
    proposal.write_text(json.dumps(content))
    data.imported("--classes", proposal)
    place = np.array([*(order.index(name) for name in NAMES), *[255] * 253], np.uint8)
    assert all((data.masks()[str(number)] == place[known_mask(number)]).all() for number in range(3))


def test_ids_that_are_learned(data):
    fill(data, lambda ids: ids)
    data.imported("--yes")
    same(data)
    assert data.classes() == ["class 0", "class 1", "class 2"]


def test_other_numbering(data):
    fill(data, lambda ids: np.where(ids == 255, 0, ids + 1).astype(np.uint8))
    with pytest.raises(InputError, match=r"class ids 3 are not in 0..2"):
        data.imported("--class-names", *NAMES)
    with pytest.raises(InputError, match=r"--map 2:7|‹map›|map 2:7: there are 3 classes"):
        data.imported("--class-names", *NAMES, "--map", "2:7")
    data.imported("--class-names", *NAMES, "--map", "0:255,1:0,2:1,3:2")
    same(data)


def test_a_jpeg_of_ids(data):
    fill(data, lambda ids: ids, known_in_blocks, "jpg", quality=80)
    data.imported("--class-names", *NAMES)
    wrong = [(data.masks()[str(number)] != known_in_blocks(number)).mean() for number in range(3)]
    assert max(wrong) < 0.01 and len(data.report["notes"]) >= 3


def known_in_blocks(number):
    """Far-apart ids would be no test: 0..2 lie next to each other."""
    return np.kron(np.array([[0, 1], [2, (1 + number) % 3]], np.uint8), np.ones((16, 16), np.uint8))


def test_real_files_of_others(data):
    odd = SHARED / "data" / "odd"
    if not odd.is_dir():
        pytest.skip("the odd files are not at hand")
    for name in ("roboflow_frame.jpg", "roboflow_frame_mask.png"):
        data.write("train/x", "")
        (data.root / "train" / name).write_bytes((odd / name).read_bytes())
    data.write("train/_classes.csv", (odd / "roboflow_classes.csv").read_text())
    data.imported()
    assert (data.masks()["roboflow_frame"] == np.asarray(Image.open(odd / "roboflow_frame_mask.png"))).all()
    assert data.classes()[:2] == ["background", "cabinet"] and data.report["format"] == "roboflow-masks"


def test_a_real_jpeg_of_ids(data):
    odd = SHARED / "data" / "odd"
    if not odd.is_dir():
        pytest.skip("the odd files are not at hand")
    for name in ("image", "label"):
        (data.root / f"a_{name}.jpg").write_bytes((odd / f"jpegmask_{name}.jpg").read_bytes())
    data.imported("--class-names", *(f"class {number}" for number in range(12)))
    (made,) = data.masks().values()
    stored = np.asarray(Image.open(odd / "jpegmask_label.jpg"))
    assert set(np.unique(made)) <= set(range(12))
    flat = np.ones(stored.shape, bool)
    for rows in range(-1, 2):
        for columns in range(-1, 2):
            flat &= np.roll(stored, (rows, columns), (0, 1)) == stored
    assert (made == stored)[1:-1, 1:-1][flat[1:-1, 1:-1] & (stored[1:-1, 1:-1] < 12)].all()


def test_scenes_are_cut_and_split_whole(data):
    for number in range(5):
        data.image(f"images/s{number}.png", number, (40, 70))
        ids = np.full((40, 70), number % 3, np.uint8)
        ids[:, :20] = 255
        data.save(f"masks/s{number}.png", ids)
    data.image("elsewhere.png", 9, (32, 32))
    (data.root.parent / "refs").mkdir()
    (data.root / "elsewhere.png").rename(data.root.parent / "refs" / "r.png")
    words = ["--class-names", *NAMES, "--tile", 16, "--overlap", 4, "--split", 0.6, 0.2, 0.2]
    out = data.imported(*words, "--references", data.root.parent / "refs", "--prompt-template", "{split}: {classes}")
    splits = {path.stem: path.parent.name for path in out.glob("label_*/*.png")}
    assert {name.split("_")[0] for name in splits} == {f"s{number}" for number in range(5)}
    for scene in range(5):
        assert len({split for name, split in splits.items() if name.startswith(f"s{scene}_")}) == 1
    # 40 = 16 + 12 + 12; 70: 0, 12, 24, 36, 48, 54; the first tile of a row has no label
    assert len(splits) == 5 * 3 * 5 and data.report["left_out_count"] == 5 * 3
    made, whole = data.masks()["s1_y0024_x0054"], np.asarray(Image.open(data.root / "images" / "s1.png"))
    assert (made == 1).all() and made.shape == (16, 16)
    path = next(out.glob("img_*/s1_y0024_x0054.png"))
    assert (np.asarray(Image.open(path)) == whole[24:40, 54:70]).all()
    assert data.lines("test")[0]["prompt"].startswith("test: ")
    assert {line["ref_image"].split("_y")[0] for line in data.lines("inference")} == {"ref_img/r"}
    table = load_class_table(str(out / "classes.json"))
    how = {"classes": table, "need_reference": True, "multiple_of": 16, "progress": False}
    items, _ = read_manifest(out / "inference_set_items.json", out, **how)
    assert len(items) == len(data.lines()) and check_data(read_options(CheckOptions, "", [str(out)]), len).clean


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("a_y0000_x0512", "a"),
        ("a_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9", "a"),
        ("a_y0_x512_png.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9", "a"),
        ("a_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9_y0000_x0512", "a"),
        ("a.rf.1", "a.rf.1"),
    ],
)
def test_what_is_of_one_scene_by_its_name(name, scene):
    assert scene_of(name) == scene


def test_what_is_missing_or_faulty_leaves_nothing(data):
    fill(data, lambda ids: ids)
    (data.root / "masks" / "1.png").unlink()
    with pytest.raises(InputError, match=r"images/1.png: has no mask; add them"):
        data.imported("--class-names", *NAMES)
    data.imported("--class-names", *NAMES, "--unlabeled", "skip")
    assert sorted(data.masks()) == ["0", "2"]
    data.out = data.out.with_name("again")
    data.save("masks/1.png", known_mask(1)[:20])
    with pytest.raises(InputError, match=r"masks/1.png: is 32 x 20 px, its image 32 x 32"):
        data.imported("--class-names", *NAMES)
    (data.root / "images" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(InputError, match=r"images/0.png: cannot be read"):
        data.imported("--class-names", *NAMES)
    assert sorted(path.name for path in data.root.parent.iterdir() if not path.name.startswith(".")) == [
        "given",
        "made",
    ]
    assert not list(data.root.parent.glob(".again.importing"))
