"""Many pairs are looked at by processes: they find, and say, what threads do."""

import os
import re
import signal
from functools import partial

import numpy as np
import pytest
from PIL import Image

from common import sound_pairs as module
from common.bands import see
from common.errors import InputError
from common.images import Labels
from common.said import said
from common.sound_pairs import sound_pairs
from tests.odd_files import TURN

LABELS = Labels(3, colors=((200, 10, 0, 0), (0, 90, 250, 1), (7, 60, 7, 2)), name="of three")
PLAIN = partial(see, bands=None)


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    colors = np.array([color[:3] for color in LABELS.colors], np.uint8)
    for kind in ("img", "label"):
        (tmp_path / kind).mkdir()
    for i in range(11):
        ids = rng.integers(0, 3, (8, 12)).astype(np.uint8)
        Image.fromarray(colors[ids] if i > 6 else ids).save(tmp_path / "label" / f"a{i}.png")
        image = Image.fromarray(rng.integers(0, 256, (8, 12, 3)).astype(np.uint8))
        image.save(tmp_path / "img" / f"a{i}.jpg", **({"exif": TURN} if i == 3 else {}))
    return tmp_path


def found(folders, monkeypatch, capfd, many, look=PLAIN, **options):
    monkeypatch.setattr(module, "_MANY", many)
    monkeypatch.setattr(module, "_CHUNK", 2)
    monkeypatch.setattr("common.said._said", set())

    def err():
        return re.findall(r"masks in colors.*|\d+ of \d+ pairs.*", capfd.readouterr().err)

    try:
        pairs = sound_pairs(folders / "img", folders / "label", ("images", "masks"), LABELS, look=look, **options)
    except InputError as error:
        return str(error), err()
    shown = [(one.fault, one.pixels.tolist(), one.turned, one.size, one.image_size) for one in pairs.checked]
    return [pair.name for pair in pairs.pairs], shown, pairs.left_out, err(), said()


def seen_by(folder, path):
    (folder / f"{path.stem}.{os.getpid()}").touch()
    return see(path, None)


def killed_at(name, path):
    if path.stem == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return see(path, None)


def test_many_are_looked_at_by_processes_and_few_are_not(folders, monkeypatch, capfd):
    for many, others in ((100, False), (5, True)):
        seen = folders / f"seen_{many}"
        seen.mkdir()
        found(folders, monkeypatch, capfd, many, look=partial(seen_by, seen), workers=2)
        numbers = [int(path.suffix[1:]) for path in seen.iterdir()]
        assert len(numbers) == 11 and (os.getpid() not in numbers) is others
    said = found(folders, monkeypatch, capfd, 5, look=partial(killed_at, "a8"), workers=2)
    assert "worker processes was killed" in said[0]


def test_processes_find_what_threads_do(folders, monkeypatch, capfd):
    compare = partial(found, folders, monkeypatch, capfd, workers=2)
    threads, processes = compare(100), compare(5)
    assert processes == threads
    names, shown, left_out, err, _ = processes
    assert len(names) == 11 and not left_out and [one[2] for one in shown].count(True) == 1
    assert err[0] == "masks in colors are read by those that the class table of three has"
    assert err[1].startswith("1 of 11 pairs have an EXIF tag") and len(err) == 2

    (folders / "img" / "a9.jpg").write_bytes((folders / "img" / "a9.jpg").read_bytes()[:-30])
    Image.fromarray(np.full((8, 12), 77, np.uint8)).save(folders / "label" / "a5.png")
    threads, processes = compare(100), compare(5)
    assert processes == threads
    assert "a5.png: class ids 77" in processes[0] and "a9.jpg: cannot be read (image file is truncated" in processes[0]
    threads, processes = compare(100, skip_invalid=True), compare(5, skip_invalid=True)
    assert processes == threads and len(processes[0]) == 9 and len(processes[2]) == 2


def test_links_that_lead_nowhere_are_refused_as_files(folders):
    (folders / "img" / "a2.jpg").unlink()
    (folders / "img" / "a2.jpg").symlink_to(folders / "img" / "a2.jpg")
    (folders / "img" / "a4.jpg").unlink()
    (folders / "img" / "a4.jpg").symlink_to(folders / "img" / "a1.jpg" / "a4.jpg")
    given = folders / "img", folders / "label", ("images", "masks"), LABELS
    with pytest.raises(
        InputError, match=r"a2.jpg: cannot be read \(Too many levels.*a4.jpg: cannot be read \(Not a directory"
    ):
        sound_pairs(*given)
    assert len(sound_pairs(*given, skip_invalid=True).pairs) == 9
