import io
import os
import random
import socket
import time
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from common.decoding import MAX_PIXELS
from common.images import ImageError, Labels, image_and_orientation, mask_and_orientation, read_image, read_mask
from common.pixels import Seen, rgb_pixels, see_rgb
from tests.faults.mutate import mutate_bytes
from tests.odd_files import FILES, IDS, PIXELS, TURN, encoded


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_taken_whole_or_refused_in_one_line(tmp_path, capfd, name):
    suffix, data, as_image, as_mask = FILES[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as the reader sets it, which pytest undoes
        for read, says in ((read_image, as_image), (read_mask, as_mask)):
            start = time.monotonic()
            if says is None:
                pixels = read(path)
                assert pixels.dtype == np.uint8 and pixels.shape[:2] == IDS.shape
                if read is read_mask:
                    assert (pixels == (IDS % 2 if "1 bit" in name else IDS)).all()
            else:
                with pytest.raises(ImageError) as error:
                    read(path)
                text = str(error.value)
                assert text.startswith(f"{path}: ") and says in text and "\n" not in text
            assert time.monotonic() - start < 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "kind", ["pipe", "device", "folder", "socket", "lost link", "loop", "NUL", "absent", "surrogate"]
)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, kind):
    path, says = tmp_path / "a.png", "cannot be read"
    if kind == "pipe":
        os.mkfifo(path)
        says = "is a pipe or device"
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
        says = "is a pipe or device"
    elif kind == "device":
        path.symlink_to("/dev/zero")
        says = "is a pipe or device"
    elif kind == "folder":
        path.mkdir()
        says = "is a folder"
    elif kind == "lost link":
        path.symlink_to(tmp_path / "nowhere")
        says = f"is a link to {tmp_path}/nowhere, which is not there"
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = tmp_path / {"NUL": "a\0.png", "absent": "b.png", "surrogate": "a\udc80\n.png"}[kind]
    for read in (read_image, read_mask):
        with pytest.raises(ImageError) as error:
            read(path)
        assert says in str(error.value) and "\n" not in str(error.value) and str(error.value).isprintable()


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(IDS))
    os.truncate(path, 10 * MAX_PIXELS)
    with pytest.raises(ImageError, match="bytes, more than"):
        read_mask(path)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_told_and_not_applied(tmp_path, turn):
    exif = Image.Exif()
    exif[274] = turn
    wide = PIXELS[:40]
    for name, options in {"a.jpg": {"quality": 100, "subsampling": 0}, "a.png": {}, "a.tif": {}}.items():
        Image.fromarray(wide).save(tmp_path / name, exif=exif, **options)
        pixels, found = image_and_orientation(tmp_path / name)
        assert found == turn and pixels.shape == wide.shape
        assert name == "a.jpg" or (pixels == wide).all()


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"exif": TURN}, {"quality": 7}]
)
def test_jpeg_pixels_are_those_of_opencv(tmp_path, options):
    rng = np.random.default_rng(0)
    for size in ((37, 61, 3), (16, 16, 3), (40, 23)):
        data = encoded(rng.integers(0, 256, size, dtype=np.uint8), "JPEG", **options)
        (tmp_path / "a.jpg").write_bytes(data)
        other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        assert (read_image(tmp_path / "a.jpg") == other[..., ::-1]).all()


def test_a_palette_becomes_colors_before_any_resizing(tmp_path):
    palette = np.random.default_rng(0).integers(0, 256, (4, 3)).tolist()
    (tmp_path / "a.png").write_bytes(encoded(IDS, palette=np.ravel(palette).tolist()))
    assert (read_image(tmp_path / "a.png") == np.array(palette)[IDS]).all()


def test_labels_there_and_back(tmp_path):
    for labels, raw, ids in (
        (Labels(4), [0, 3, 255], [0, 3, 255]),
        (Labels(4, 9), [0, 3, 9], [0, 3, 255]),
        (Labels(4, 0), [0, 3, 1], [255, 3, 1]),
        (Labels(4, reduce_zero=True), [1, 4, 255], [0, 3, 255]),
        (Labels(2, of_id=(1, 255, 0, *[-1] * 252, 255)), [0, 2, 255], [1, 0, 255]),
    ):
        Image.fromarray(np.array([raw], dtype=np.uint8)).save(tmp_path / "a.png")
        assert labels.read(tmp_path / "a.png").tolist() == [ids]
        assert labels.to_file(np.array([ids], dtype=np.uint8)).tolist() == [raw]
    Image.fromarray(np.array([[0, 5, 255, 7]], dtype=np.uint8)).save(tmp_path / "a.png")
    for labels, says in (
        (Labels(4, 9), "class ids 5, 7, 255 are not in 0..3 or 9"),
        (Labels(4, reduce_zero=True), r"class ids 5, 7 are not in 1..4 or 0, 255"),
    ):
        with pytest.raises(ImageError, match=says):
            labels.read(tmp_path / "a.png")
    with pytest.raises(ImageError, match="class ids 5, 7 are"):
        Labels(4).read(tmp_path / "a.png")


def verdict(look):
    """What looking at a file gives, or says against it."""
    try:
        return look()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")
def test_who_only_looks_at_a_file_is_told_what_a_reader_is(name, tmp_path):
    suffix, data, *_ = FILES[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    seen, pixels = verdict(lambda: see_rgb(path)), verdict(lambda: rgb_pixels(path))
    assert seen == (pixels if isinstance(pixels, str) else Seen(pixels.values.shape[:2], pixels.orientation))
    found, ids = verdict(lambda: Labels(4).count(path)), verdict(lambda: mask_and_orientation(path))
    if isinstance(ids, str):
        assert found == ids
    else:
        assert found[0].tolist() == np.bincount(ids[0].ravel(), minlength=256).tolist()
        assert found[1] == Seen(ids[0].shape, ids[1])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_looked_at_to_its_end(mode, options, tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (75, 131, 3), np.uint8)).convert(mode)
    data = encoded(noise, "JPEG", **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert see_rgb(path) == Seen((75, 131))
    for end in (len(data) // 2, len(data) - 40):
        path.write_bytes(data[:end])
        assert verdict(lambda: see_rgb(path)) == verdict(lambda: rgb_pixels(path))
        assert "truncated" in verdict(lambda: see_rgb(path))


@pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as the reader sets it, which pytest undoes
def test_mutations_are_read_or_refused(tmp_path, capfd, request):
    count = request.config.getoption("--mutations") or 400
    rng, path, taken = random.Random(request.config.getoption("--seed")), tmp_path / "a", 0
    sources = [data for name, (_, data, image, mask) in FILES.items() if None in (image, mask)]
    sources += [encoded(PIXELS, kind) for kind in ("BMP", "GIF", "WEBP")]
    for _ in range(count):
        what, data = mutate_bytes(rng.choice(sources), rng)
        path.write_bytes(data)
        for read, look in ((read_image, see_rgb), (read_mask, Labels(4).count)):
            seen = verdict(lambda look=look: look(path))
            try:
                pixels = read(path)
            except ImageError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, what
                assert seen == str(error), what  # who only looks is told the same
                continue
            taken += pixels.dtype == np.uint8
            if look is see_rgb:
                assert seen.size == pixels.shape[:2], what
            else:
                assert seen[0].tolist() == np.bincount(pixels.ravel(), minlength=256).tolist(), what
                assert seen[1].size == pixels.shape, what
    assert 0.12 * count < taken < 1.5 * count and capfd.readouterr() == ("", "")


def test_more_scans_than_anyone_needs(tmp_path):
    data = encoded(PIXELS, "JPEG", progressive=True)
    at = data.index(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:-2] + data[at:-2] * 600 + data[-2:])
    with pytest.raises(ImageError, match="scans"):
        read_image(tmp_path / "a.jpg")
    assert Image.open(io.BytesIO(data)).size == IDS.shape
