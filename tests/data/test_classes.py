import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from common.classes import built_in_tables, far_apart_colors, load_class_table
from common.errors import InputError

SHARED = Path(__file__).parents[3] / "shared/data/mbrsc"


@pytest.mark.parametrize(
    ("name", "n", "first", "last"),
    [
        ("FUSU", 17, "traffic land", "grass"),
        ("gid", 24, "industrial land", "airport"),
        ("LOVEDA", 7, "background", "agricultural"),
        ("mbrsc", 5, "building", "water"),
    ],
)
def test_built_in_tables(name: str, n: int, first: str, last: str) -> None:
    table = load_class_table(name)
    assert (len(table), table.names[0], table.names[-1], table.ignore_index) == (n, first, last, 255)
    assert table.palette.shape == (n, 3) and table.palette.dtype == np.uint8
    assert len(np.unique(table.palette, axis=0)) == n
    assert len(built_in_tables()) == 4


def test_a_file_with_and_without_palette(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('{"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_index": 2}')
    table = load_class_table(str(path))
    assert (table.names, table.palette.tolist(), table.ignore_index) == (("a", "b"), [[1, 2, 3], [4, 5, 6]], 2)
    ids = np.array([[0, 1, 2]], dtype=np.uint8)
    assert table.labels.wrong(ids) == ""
    assert "class ids 3, 255 are not in 0..1 or 2 (ignore)" in table.labels.wrong(np.array([[3, 255]], dtype=np.uint8))
    path.write_text('{"classes": ["a", "b"]}')
    assert (load_class_table(str(path)).palette == far_apart_colors(2)).all()


@pytest.mark.skipif(not SHARED.exists(), reason="no real data here")
def test_the_mbrsc_table_is_the_data_sets() -> None:
    content = json.loads((SHARED / "classes.json").read_text())
    table = load_class_table("MBRSC")
    assert list(table.names) == content["classes"] and table.palette.tolist() == content["palette"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no readable JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "field classes"),
        ('{"classes": []}', "field classes"),
        ('{"classes": ["a", "A"]}', "field classes: duplicate names: a"),
        ('{"classes": ["a", "b"], "palette": [[0, 0, 0]]}', "field palette: must be a list of 2 colors"),
        ('{"classes": ["a"], "palette": [[0, 0, 256]]}', "field palette: color 0"),
        ('{"classes": ["a"], "palette": [[0, 0]]}', "field palette: color 0"),
        ('{"classes": ["a"], "palette": [[0, 0, 0.5]]}', "field palette: color 0"),
        ('{"classes": ["a"], "ignore_index": 0}', "field ignore_index: is 0"),
        ('{"classes": ["a"], "ignore_index": 256}', "field ignore_index: is 256"),
    ],
)
def test_bad_files_are_refused_by_file_and_field(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        load_class_table(str(path))
    assert str(path) in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_table_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"nowhere.*FUSU, GID, LoveDA, MBRSC"):
        load_class_table("nowhere")


@pytest.mark.parametrize(("n", "distance"), [(5, 180), (7, 180), (17, 120), (24, 100), (255, 38)])
def test_colors_are_far_from_each_other_and_from_black(n: int, distance: float) -> None:
    colors = np.vstack([np.zeros(3), far_apart_colors(n)])
    assert pdist(colors).min() >= distance
    assert (far_apart_colors(255)[:n] == colors[1:]).all()  # more classes leave the first colors as they are


def test_more_colors_than_ids_are_refused() -> None:
    with pytest.raises(InputError, match="256"):
        far_apart_colors(256)
