"""From what is painted, or is in a file, to class ids."""

import numpy as np
import pytest
from PIL import Image

from common.classes import class_table
from common.errors import InputError
from common.images import IGNORE
from web.masks import as_layer, brush_palette, fitted, hex_colors, painted_ids, read_mask_file

COLORS = [[255, 0, 0], [0, 0, 255], [128, 0, 128], [255, 255, 255]]  # the third lies between the first two
TABLE = class_table({"classes": ["a", "b", "c", "d"], "palette": COLORS}, "classes.json")


def test_colors_become_classes_and_what_is_not_painted_is_ignored():
    ids = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    layer = as_layer(ids, TABLE.palette)
    assert layer[1, 1].tolist() == [0, 0, 0, 0] and layer[1, 0].tolist() == [255, 255, 255, 255]
    assert np.array_equal(painted_ids(layer, TABLE.palette), ids)
    assert hex_colors(TABLE.palette)[2] == "#800080"


def test_a_soft_edge_becomes_one_of_the_classes_beside_it():
    """Half red, half blue: the mixed color is that of a third class, of which nothing is painted there."""
    layer = np.zeros((8, 9, 4), np.uint8)
    layer[:, :4] = (255, 0, 0, 255)
    layer[:, 4] = (130, 2, 124, 255)  # a soft edge
    layer[:, 5:8] = (0, 0, 255, 255)
    layer[:, 8] = (0, 0, 255, 90)  # the edge to nothing, hardly painted
    layer[0, 0] = (128, 0, 128, 255)  # a dot of that class itself stays
    ids = painted_ids(layer, TABLE.palette)
    assert set(np.unique(ids[:, 4])) <= {0, 1} and (ids[:, 8] == IGNORE).all()
    assert ids[0, 0] == 2 and (ids[1:, :4] == 0).all() and (ids[:, 5:8] == 1).all()


def test_two_classes_of_one_color_get_brushes_that_differ():
    table = class_table({"classes": ["a", "b"], "palette": [[1, 2, 3], [1, 2, 3]]}, "classes.json")
    assert len({tuple(color) for color in brush_palette(table).tolist()}) == 2
    assert np.array_equal(brush_palette(TABLE), TABLE.palette)


def test_files_of_ids_of_colors_and_jpegs(tmp_path):
    ids = np.repeat(np.repeat(np.array([[0, 1], [3, 0]], np.uint8), 24, 0), 24, 1)
    colors = np.array(COLORS, np.uint8)[ids]
    Image.fromarray(ids).save(tmp_path / "ids.png")
    Image.fromarray(ids).save(tmp_path / "ids.tif")
    Image.fromarray(colors).save(tmp_path / "colors.png")
    Image.fromarray(colors).save(tmp_path / "colors.jpg", quality=70)
    Image.fromarray(np.clip(colors.astype(int) + 9, 0, 255).astype(np.uint8)).save(tmp_path / "nearby.png")
    for name in ("ids.png", "ids.tif", "colors.png", "nearby.png"):
        assert np.array_equal(read_mask_file(tmp_path / name, TABLE), ids), name
    assert (read_mask_file(tmp_path / "colors.jpg", TABLE) == ids).mean() > 0.98
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, said in (("other.png", "class ids 9"), ("text.png", "text.png")):
        with pytest.raises(InputError, match=said):
            read_mask_file(tmp_path / name, TABLE)


def test_a_picture_is_cut_or_scaled_to_the_pages_size():
    ids = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    assert np.array_equal(fitted(ids, 4), ids[1:5, 2:6])  # at its own scale
    assert np.array_equal(fitted(ids, 3, whole=True), ids[:, 1:7][1::2, 1::2])
    assert np.array_equal(fitted(ids[:2, :3], 4), np.repeat(np.repeat(ids[:2, :2], 2, 0), 2, 1))
    assert fitted(np.zeros((9, 12, 3), np.uint8), 4).shape == (4, 4, 3)
