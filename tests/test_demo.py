"""The demonstrations' scripts: one at a time, no command outlives them, and "done" says what was done."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.test_processes import alive, gone

STUB = """#!/bin/sh
[ "$2" = common.processes ] && exec {python} "$@"
cd {place} || exit 1
echo $$ > pid && mv pid started
exec sleep 60
"""


@pytest.fixture
def place(tmp_path):
    """Data, and a python that starts nothing but itself."""
    for folder in ("img_train", "label_train"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "a.png").write_bytes(b"1")
    for name in ("classes", "train_set_items"):
        (tmp_path / "data" / f"{name}.json").write_text("{}")
    (tmp_path / "python").write_text(STUB.format(python=sys.executable, place=tmp_path))
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def start(place, **settings):
    return subprocess.Popen(
        ["bash", ROOT / "demo/prove.sh", place / "data", place / "out"],
        text=True,
        env={**os.environ, "PYTHON": str(place / "python"), **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_script(place, number):
    with start(place) as first:
        training = wait_for(place / "started")
        with start(place) as second:
            assert f"error: {place}/out: process {first.pid} on" in second.stderr.read()
        assert second.returncode == 2 and alive(training)
        first.send_signal(number)
        assert gone([training])


def test_done_is_of_certain_settings_and_data(place):
    run = place / "out/logs/synthesis"
    ask = place / "ask.sh"  # what it would write
    text = (ROOT / "demo/prove.sh").read_text().partition("if ! is_done")[0]
    ask.write_text(text.replace('cd "$(dirname "$0")/.."', f"cd {ROOT}") + 'echo "$settings"')
    said = subprocess.run(["bash", ask, place / "data", place / "other"], capture_output=True, text=True, check=True)
    run.mkdir(parents=True)
    (run / "done").write_text(said.stdout.splitlines()[-1] + "\n")
    with start(place) as script:  # goes on behind the training
        wait_for(place / "started")
        script.kill()
    (place / "started").unlink()
    for change, settings in ((b"1", {"SIZE": "64"}), (b"2", {})):
        (place / "data/label_train/a.png").write_bytes(change)
        with start(place, **settings) as script:
            assert "done: of another training" in script.stderr.read()
        assert script.returncode == 2 and not (place / "started").exists()
