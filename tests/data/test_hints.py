import numpy as np
import pytest
import torch

from cldm.data.hints import HintEncoder
from common.classes import far_apart_colors, load_class_table
from common.errors import InputError
from common.pictures import colorize

TABLE = load_class_table("FUSU")
MASK = np.array([[0, 1, 16], [255, 3, 0]], dtype=np.uint8)


def test_index_is_the_id_over_255_three_times() -> None:
    hint = HintEncoder("index")(MASK)
    assert hint.shape == (3, 2, 3) and hint.dtype == torch.float32
    assert torch.equal(hint, torch.from_numpy(MASK.astype(np.float32) / 255).expand(3, 2, 3))


def test_palette_is_a_far_color_a_class_and_black_for_ignore() -> None:
    hint = HintEncoder("palette", TABLE)(MASK)
    colors = np.vstack([far_apart_colors(17), np.zeros((239, 3))])
    assert hint.shape == (3, 2, 3)
    assert np.allclose(hint.permute(1, 2, 0), colors[MASK] / 255, atol=1e-7)


def test_table_is_the_tables_own_colors() -> None:
    hint = HintEncoder("table", TABLE)(MASK)
    expected = np.vstack([TABLE.palette, np.zeros((256 - len(TABLE), 3), np.uint8)])[MASK] / 255
    assert np.allclose(hint.permute(1, 2, 0).numpy(), expected)


def test_decoding_gives_the_mask_back() -> None:
    for encoding in ("index", "palette", "table", "onehot"):
        encode = HintEncoder(encoding, TABLE)
        assert (encode.decode(encode(MASK)) == MASK).all(), encoding


def test_onehot_has_a_channel_a_class_and_none_for_ignore() -> None:
    encode = HintEncoder("onehot", TABLE)
    hint = encode(MASK)
    assert encode.channels == 17 and hint.shape == (17, 2, 3)
    assert hint.sum(0).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert hint.argmax(0)[0].tolist() == [0, 1, 16]


@pytest.mark.parametrize(("encoding", "distance"), [("index", 1 / 255), ("palette", 0.4), ("onehot", 1.0)])
def test_all_classes_and_ignore_stay_apart(encoding: str, distance: float) -> None:
    ids = np.array([[*range(17), 255]], dtype=np.uint8)
    values = HintEncoder(encoding, TABLE)(ids)[:, 0].T  # (18, C)
    assert values.min() >= 0 and values.max() <= 1
    assert torch.pdist(values).min() >= distance * 0.999


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InputError, match="hint_encoding rgb: must be one of index, palette, table, onehot"):
        HintEncoder("rgb")
    with pytest.raises(InputError, match="onehot: needs a class table"):
        HintEncoder("onehot")
    with pytest.raises(InputError, match=r"class ids \[17\]"):
        HintEncoder("palette", TABLE)(np.array([[17]], dtype=np.uint8))


def test_colorize_uses_the_tables_colors() -> None:
    table = load_class_table("LoveDA")
    picture = colorize(np.array([[1, 255, 0]], dtype=np.uint8), table.palette)
    assert picture.tolist() == [[[255, 0, 0], [0, 0, 0], [255, 255, 255]]]
