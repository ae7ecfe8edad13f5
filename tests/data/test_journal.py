import json

import pytest

from common.errors import InputError
from common.journal import Journal, Record


class Line(Record):
    pixels: list[int]
    share: float | None = None


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def journal(tmp_path, request):
    journal = Journal(tmp_path / "state", "syn", Line, sealed=request.param)
    for part, name in (("0", "a"), ("1", "b"), ("0", "c")):
        journal.append(Line(name=name, pixels=[1, 2], share=0.1), part)
    return journal


def test_every_process_adds_to_its_own_file_and_all_are_read(journal):
    assert sorted(path.name for path in journal.paths()) == ["syn.0.jsonl", "syn.1.jsonl"]
    assert list(journal.read()) == ["a", "c", "b"] and journal.read()["b"].share == 0.1
    journal.append(Line(name="a", pixels=[3]), "0")
    assert journal.read()["a"].pixels == [3]  # the latest counts


def test_merged_files_read_the_same(journal):
    before = journal.read()
    journal.merge(lambda name: name != "c")
    assert [path.name for path in journal.paths()] == ["syn.jsonl"]
    assert journal.read() == {"a": before["a"], "b": before["b"]}
    journal.append(Line(name="a", pixels=[9]), "1")
    assert journal.read()["a"].pixels == [9]


@pytest.mark.parametrize("end", [1, 2, 10, 15, 25, -1])
def test_a_line_cut_by_a_kill_is_left_out_and_does_no_harm(journal, end):
    path = journal.path("0")
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:end])
    assert list(journal.read()) == ["a", "b"]
    journal.append(Line(name="d", pixels=[]), "0")
    assert list(journal.read()) == ["a", "d", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\x89PNG", "no JSON"),
        (b"[]", "valid dict"),
        (b"{}", "name"),
        (b"\xff{}", "no JSON"),
        (b"[" * 9999, "no JSON"),
        (b'{"name": "x", "pixels": [1.5]}', "pixels.0: 1.5"),
        (b'{"name": "x", "pixels": [], "share": NaN}', "no JSON"),
        (b'{"name": "x", "pixels": [], "name": "y"}', "no JSON"),
        (b'{"name": 3, "pixels": []}', "name: 3"),
        (b'{"name": "x", "pixels": [], "share": 1e999}', "share: inf"),
        (b"\0\0\0", "no JSON"),
    ],
)
def test_what_is_no_record_is_refused_with_its_line(journal, line, reason):
    path = journal.path("0")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InputError) as error:
        journal.read()
    message = str(error.value)
    assert f"{path}: line 3" in message and f"remove {path}" in message and "\n" not in message
    assert journal.sealed or reason in message


def test_a_changed_number_breaks_the_seal(tmp_path):
    journal = Journal(tmp_path, "real", Line, sealed=True)
    journal.append(Line(name="a", pixels=[1234], share=0.25))
    text = journal.path().read_text()
    assert set(json.loads(text)) == {"name", "pixels", "share", "seal"}
    for old, new in (("1234", "1235"), ("0.25", "0.26"), ('"a"', '"b"')):
        journal.path().write_text(text.replace(old, new))
        with pytest.raises(InputError, match="line 1: damaged"):
            journal.read()
