"""Records of synthesized images: complete and whole however many commands write into one folder."""

import json
import multiprocessing

import pytest

from cldm.synthesis.records import Sample, append_record, merge_records, publishing, read_records, working_in

COMMANDS, IMAGES = 3, 40


def write_images(folder, command):
    for i in range(IMAGES):
        with publishing(folder):
            append_record(folder, Sample(name=f"{command}_seed_{i}"), rank=command % 2)
            (folder / f"{command}_seed_{i}.png").touch()


def test_commands_that_share_a_folder_lose_no_record(tmp_path):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_images, args=(tmp_path, command)) for command in range(COMMANDS)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        merge_records(tmp_path)  # as a command does at its start and end
        pictures = len(list(tmp_path.glob("*.png")))
        assert len(read_records(tmp_path)) >= pictures
    merge_records(tmp_path)
    names = [json.loads(line)["name"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert names == sorted(f"{command}_seed_{i}" for command in range(COMMANDS) for i in range(IMAGES))
    assert [p.name for p in tmp_path.glob("*.jsonl")] == ["samples.jsonl"]


def test_a_kill_leaves_whole_records_of_whole_images(tmp_path):
    (tmp_path / "a.png").touch()
    lines = ['{"name": "a", "seed": 1}', '{"name": "a", "seed": 2, "new": 3}', '{"name": "no image"}', '{"name": "cut']
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    (tmp_path / "samples.backup.jsonl").write_text(lines[0])  # somebody's own
    (tmp_path / "samples.rank1.jsonl").write_text("")
    merge_records(tmp_path)
    assert (tmp_path / "samples.jsonl").read_text() == '{"name":"a","seed":2,"new":3}\n'
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"samples.jsonl", "samples.backup.jsonl"}


@pytest.mark.parametrize("shared", [False, True])
def test_temporary_files_of_others_stay(tmp_path, shared):
    temporary = tmp_path / ".a.x.tmp.png"
    temporary.touch()
    if shared:
        with working_in(tmp_path):
            temporary.touch()
            with working_in(tmp_path):
                assert temporary.exists()
    with working_in(tmp_path):
        assert not temporary.exists()
