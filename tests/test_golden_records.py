"""The golden records that travel with the code: small, complete, and a part of the whole ones to the last bit."""

import json

import numpy as np

from tests.golden.records import HERE, KEPT, WHOLE, Record, reduced

RECORDS = sorted(path.relative_to(HERE).as_posix() for end in ("json", "npz") for path in HERE.rglob(f"*.{end}"))


def test_the_records_are_here_and_small():
    assert len(RECORDS) == 22
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 3e6


def test_they_are_a_part_of_the_whole_ones_where_those_are():
    for name in RECORDS if WHOLE.is_dir() else ():
        if name.endswith(".json"):
            assert json.loads((HERE / name).read_text()) == json.loads((WHOLE / name).read_text()), name
            continue
        whole, kept = reduced(dict(np.load(WHOLE / name))), dict(np.load(HERE / name))
        for key, value in kept.items():
            np.testing.assert_array_equal(value, whole[key], err_msg=f"{name}: {key}")


def test_an_array_is_kept_by_a_sample_that_finds_a_change():
    value = np.arange(KEPT + 1, dtype=np.float32).reshape(1, -1)
    record = Record.__new__(Record)
    record.files = [reduced({"a": value, "ids": value.astype(int)})]
    assert record.shape("a") == value.shape and record.shape("ids") == value.shape
    assert record.files[0]["a"].shape == (2048,)
    record.close("a", value, rtol=0)
    for wrong in (value + 1, value[:, ::-1], value.T):
        try:
            record.close("a", wrong, rtol=1e-6)
        except AssertionError:
            continue
        raise AssertionError("a wrong array was taken")
