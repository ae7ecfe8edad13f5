from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from cldm.data.manifest import read_manifest
from common.classes import load_class_table
from common.errors import InputError

Line = Callable[..., str]
SHARED = Path(__file__).parents[3] / "shared/data/mbrsc"
MBRSC = load_class_table("MBRSC")


def write(root: Path, *lines: str) -> Path:
    (root / "train.json").write_text("\n".join(lines))
    return root / "train.json"


def fault_of(root: Path, *lines: str, **options: object) -> str:
    """The message for a list, one line, which begins with the list's name."""
    path = write(root, *lines)
    with pytest.raises(InputError) as error:
        read_manifest(path, root, progress=False, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"{path} ")
    return message.removeprefix(f"{path} ")


def test_items_are_read_in_order(data: Path) -> None:
    items, faults = read_manifest("train.json", data, classes=MBRSC, need_reference=True, progress=False)
    assert faults == [] and [item.name for item in items] == ["m0", "m1", "m2", "m3"]
    first = items[0]
    assert (first.mask, first.image, first.reference) == (
        data / "label/m0.png",
        data / "img/m0.jpg",
        data / "ref/m0.jpg",
    )
    assert (first.prompt, first.line, first.size) == ("p0", 1, (64, 64))


def test_fields_that_are_not_needed_are_not_looked_at(data: Path, line: Line) -> None:
    path = write(data, line(0, target="nowhere.jpg"), "", line(1, target=None, ref_image=7, prompt=""))
    items, _ = read_manifest(path, data, need_image=False, progress=False)
    assert [(item.image, item.reference, item.line, item.prompt) for item in items] == [
        (None, None, 1, "p0"),
        (None, None, 3, ""),
    ]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{'source': 1}", "line 2: no JSON object ("),
        ("[1]", "line 2: no JSON object but a list"),
        ({"source": None}, "line 2, field source: missing"),
        ({"target": None}, "line 2, field target: missing"),
        ({"prompt": None}, "line 2, field prompt: missing"),
        ({"ref_image": None}, "line 2, field ref_image: missing"),
        ({"prompt": 3}, "line 2, field prompt: must be text in quotes, is 3"),
        ({"source": "label/x.png"}, "line 2, field source: file not found: label/x.png"),
        ({"source": "label"}, "line 2, field source: file not found: label"),
        ({"source": ""}, "line 2, field source: file not found"),
        ({"target": "../img.jpg"}, "line 2, field target: path leaves the data root"),
        ({"ref_image": "/etc/hostname"}, "line 2, field ref_image: path leaves the data root"),
        ({"source": "a\0b"}, "line 2, field source: no usable path"),
        ({"source": "a" * 5000}, "line 2, field source: no usable path"),
        ({"prompt": "a\0b"}, "line 2, field prompt: holds '\\x00' at letter 2, which is no text"),
        ({"prompt": "a\ud800b"}, "line 2, field prompt: holds '\\ud800' at letter 2"),
        ({"prompt": "x" * (1 << 20)}, "line 2: has 1048"),
        ({"target": "img/\ud800.jpg"}, "line 2, field target: no usable path: 'img/\\ud800.jpg' holds"),
        ({"source": "label/new\nline.png"}, "line 2, field source: no usable path: 'label/new\\nline.png' holds"),
        ({"source": "label/m0.png"}, "line 2, field source: label/m0.png is used by line 1"),
        ({"source": "label/../label/m0.png"}, "is used by line 1"),
        ({"target": "img/m0.jpg"}, "line 2, field target: img/m0.jpg is used by line 1"),
    ],
)
def test_a_faulty_line_is_named_with_its_field(data: Path, line: Line, bad: str | dict[str, Any], says: str) -> None:
    second = line(1, **bad) if isinstance(bad, dict) else bad
    assert says in fault_of(data, line(0), second, need_reference=True)


def test_a_link_may_not_leave_the_root_but_the_root_may_be_one(data: Path, line: Line, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    assert len(read_manifest("train.json", tmp_path / "link", progress=False)[0]) == 4
    outside = tmp_path / "outside.jpg"
    (data / "img/m0.jpg").rename(outside)
    (data / "img/m0.jpg").symlink_to(outside)
    says = fault_of(data, line(0))
    assert f"field target: img/m0.jpg leads by a link to {outside}, outside the data root" in says
    assert "follow_links" in says
    assert len(read_manifest("train.json", data, progress=False, follow_links=True)[0]) == 1


def test_cut_off_files_are_found_even_if_someone_allowed_them(
    data: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name, path in (("source", "label/m0.png"), ("target", "img/m0.jpg"), ("ref_image", "ref/m0.jpg")):
        whole = (data / path).read_bytes()
        (data / path).write_bytes(whole[: len(whole) * 2 // 3])
        assert f"line 1, field {name}: {path}: cannot be read (" in fault_of(data, line(0), need_reference=True)
        (data / path).write_bytes(b"no image")
        assert "cannot be read (is no image)" in fault_of(data, line(0), need_reference=True)
        (data / path).write_bytes(whole)


def test_masks_have_one_channel_of_ids(data: Path, line: Line) -> None:
    path = data / "label/m0.png"
    ids = np.asarray(Image.open(path))
    rgb = np.stack([ids] * 3, axis=-1)
    Image.fromarray(rgb).save(path)  # as the published data sets store them
    write(data, line(0))
    assert len(read_manifest("train.json", data, classes=MBRSC, progress=False)[0]) == 1
    palette = Image.fromarray(ids)
    palette.putpalette([7] * 768)  # mode P; colors do not matter
    palette.save(path)
    assert len(read_manifest("train.json", data, classes=MBRSC, progress=False)[0]) == 1
    rgb[0, 0, 0] ^= 1
    Image.fromarray(rgb).save(path)
    assert "field source: label/m0.png: has three channels that differ" in fault_of(data, line(0))
    Image.fromarray(ids.astype(np.uint16)).save(path)  # as the published masks of GID are
    assert len(read_manifest("train.json", data, classes=MBRSC, progress=False)[0]) == 1
    Image.fromarray(ids.astype(np.uint16) + 250).save(path)
    assert "field source: label/m0.png: values 505 are not in 0..255" in fault_of(data, line(0))


def test_ids_belong_to_the_classes_or_are_ignored(data: Path, line: Line) -> None:
    ids = np.zeros((64, 64), dtype=np.uint8)
    ids[0, :3] = 255, 5, 9
    Image.fromarray(ids).save(data / "label/m0.png")
    says = "field source: label/m0.png: class ids 5, 9 are not in 0..4 or 255 (ignore)"
    assert says in fault_of(data, line(0), classes=MBRSC)


def test_mask_and_image_have_one_size_that_fits(data: Path, line: Line) -> None:
    Image.new("L", (64, 32)).save(data / "label/m0.png")
    says = "field target: img/m0.jpg: image is 64 x 64 px, its mask 64 x 32 (width x height)"
    assert says in fault_of(data, line(0), multiple_of=32)
    Image.new("L", (100, 64)).save(data / "label/m0.png")
    Image.new("RGB", (100, 64)).save(data / "img/m0.jpg")
    assert "100 x 64 px (width x height) are no multiples of 64; use size" in fault_of(data, line(0))
    assert read_manifest("train.json", data, size=(64, 64), progress=False)[0][0].size == (64, 100)
    with pytest.raises(InputError, match="size 60 x 64: height and width must be multiples of 64"):
        read_manifest("train.json", data, size=(60, 64), progress=False)


def test_outputs_may_not_overwrite_each_other(data: Path, line: Line) -> None:
    (data / "label/m1.png").rename(data / "img/m0.png")
    lines = line(0), line(1, source="img/m0.png")
    assert len(read_manifest(write(data, *lines), data, progress=False)[0]) == 2  # training writes none
    assert "line 2, field source: img/m0.png has the file name of line 1's mask" in fault_of(
        data, *lines, need_image=False
    )


def test_lines_of_a_synthesis_may_share_a_mask_if_they_name_their_seeds(data: Path, line: Line) -> None:
    path = write(data, line(0, seeds=[0, 2]), line(0, ref_image="ref/m1.jpg", seeds=[1]), line(1))
    items, _ = read_manifest(path, data, need_image=False, need_reference=True, progress=False)
    assert [(item.name, item.seeds) for item in items] == [("m0", (0, 2)), ("m0", (1,)), ("m1", None)]
    assert items[1].reference == data / "ref/m1.jpg"
    for second, says in (
        (line(0, seeds=[2]), "line 2, field seeds: seed 2 of this mask is line 1's already"),
        (line(0), "line 1, field seeds: line 2, of the same mask's name, has none"),
        (line(1, seeds=[]), "line 2, field seeds: must be whole numbers from 0, each once"),
        (line(1, seeds=[0, 0]), "line 2, field seeds: must be whole numbers from 0, each once"),
        (line(1, seeds=[True]), "line 2, field seeds: must be whole numbers from 0, each once"),
    ):
        assert fault_of(data, line(0, seeds=[0, 2]), second, need_image=False).startswith(says)
    with pytest.raises(InputError, match="is used by line 1 already"):  # a training
        read_manifest(write(data, line(0, seeds=[0]), line(0, seeds=[1])), data, progress=False)


def test_all_faults_at_once_or_skipped(data: Path, line: Line) -> None:
    path = write(data, line(0, source="label/x.png", target=None), line(1), "{", line(2, source="label/y.png"))
    with pytest.raises(InputError) as error:
        read_manifest(path, data, progress=False)
    text = str(error.value)
    assert text.startswith(f"{path}: 4 faults; line 1, field source: ") and "\n" not in text
    assert all(f"; line {place}: " in text for place in ("1, field source", "1, field target", "3", "4, field source"))
    items, faults = read_manifest(path, data, skip_invalid=True, progress=False)
    assert [item.name for item in items] == ["m1"] and [fault.line for fault in faults] == [1, 1, 3, 4]
    assert all(str(fault).removeprefix(f"{path} ") in text for fault in faults)


def test_a_long_list_of_faults_is_cut(data: Path) -> None:
    path = write(data, *["{"] * 60)
    for skip in (False, True):  # with none valid there is nothing to go on with
        with pytest.raises(InputError) as error:
            read_manifest(path, data, skip_invalid=skip, progress=False)
        text = str(error.value)
        assert "60 faults" in text and text.count("; line ") == 10 and text.endswith("; and 50 more")


def test_no_items_no_list_no_root(data: Path) -> None:
    with pytest.raises(InputError, match=r"train\.json: no items"):
        read_manifest(write(data, "", " "), data)
    with pytest.raises(InputError, match="nowhere: no such list file"):
        read_manifest("nowhere", data)
    with pytest.raises(InputError, match=r"data_root .*nowhere: no such folder"):
        read_manifest("train.json", data / "nowhere")
    (data / "train.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="must be UTF-8"):
        read_manifest("train.json", data)


@pytest.mark.skipif(not SHARED.exists(), reason="no real data here")
def test_real_data_is_valid() -> None:
    items, faults = read_manifest("test_set_items.json", SHARED, classes=MBRSC, progress=False)
    assert len(items) == 42 and not faults and {item.size for item in items} == {(512, 512)}
