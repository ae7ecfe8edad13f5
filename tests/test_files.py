"""A full disk, whoever meets it, is one line that names it and the path, and what was there before is whole."""

import errno
import os
import resource
import runpy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common import command as base
from common.files import atomic_path, full_disk, room_for, write_json
from ldm.training.checkpoints import WholeCheckpoints
from tests.conftest import Cli


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond a megabyte, which the system refuses as it refuses writing to a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _by_handle(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(2**19)}, file)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"a": torch.zeros(2**19)}, path),
        _by_handle,
        lambda path: save_file({"a": torch.zeros(2**19)}, path),
        lambda path: np.save(path.with_suffix(".npy"), np.zeros(2**19)),
        lambda path: path.write_bytes(bytes(2**21)),
    ],
    ids=["torch", "torch by handle", "safetensors", "numpy", "bytes"],
)
def test_a_full_disk_is_one_line(
    cli: Cli, tmp_path: Path, small_disk: None, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"old")

    def main() -> None:
        with atomic_path(tmp_path / "a.ckpt") as temporary:
            write(temporary)

    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: base.run(main))
    said = cli.refused("train")
    assert said.startswith(f"error: disk full: {tmp_path / 'a.ckpt'} (") and "make room" in said
    assert (tmp_path / "a.ckpt").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".ckpt") == ["a.ckpt"]


def test_a_checkpoint_that_the_disk_refuses_late_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file server does, whose quota is known when it has been sent all."""

    def late(handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", late)
    (tmp_path / "last.ckpt").write_bytes(b"old")
    with pytest.raises(OSError, match=r"quota.*last.ckpt"):
        WholeCheckpoints().save_checkpoint({"a": torch.zeros(2)}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == b"old"


def test_threads_leave_the_process_its_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads it by setting it; one that came between would take another's for the process's own."""
    umask, before = os.umask, os.umask(0o022)

    def slow(mask: int) -> int:
        found = umask(mask)
        time.sleep(0.002)
        return found

    monkeypatch.setattr(os, "umask", slow)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: write_json({}, tmp_path / f"{i}.json"), range(12)))
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
        assert umask(0o022) == 0o022
    finally:
        umask(before)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    assert full_disk(OSError(2, "No such file")) is None and full_disk(RuntimeError("CUDA out of memory")) is None
    with pytest.raises(FileNotFoundError), room_for("--out", tmp_path):
        (tmp_path / "none").read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a"):
        raise ZeroDivisionError
    write_json({}, tmp_path / "b.json")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_grammar_of_yapf_is_whole_when_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar_module = pytest.importorskip("yapf_third_party._ylib2to3.pgen2.grammar")
    target = tmp_path / "grammar.pickle"
    seen = []

    def rename(self: Path, name: str | Path) -> None:
        """What another process would read at this moment."""
        grammar = grammar_module.Grammar()
        grammar.load(self)
        seen.append(grammar.symbol2number)
        os.link(self, name)

    monkeypatch.setattr(Path, "replace", rename)
    grammar = grammar_module.Grammar()
    grammar.symbol2number = {"file_input": 256}
    grammar.dump(str(target))
    assert seen == [{"file_input": 256}]
    assert target.exists()
