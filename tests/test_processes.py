"""Nothing that a command starts outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.stamps import Contents
from tests.conftest import ROOT

POOL = """
import os, time
from common.processes import pool
with pool(8, tasks=2) as workers:
    tasks = [workers.submit(time.sleep, 60) for _ in range(2)]
    print(*workers._processes, flush=True)
    tasks[0].result()
"""
CHILDREN = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from common.processes import Children
with Children() as children, ThreadPoolExecutor(2) as threads:
    codes = list(threads.map(lambda _: children.run([sys.executable, "-c", sys.argv[1]]), range(3)))
print("codes", codes, flush=True)
"""
NAP = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)"  # one write: two may share the pipe
SCRIPT = '"$0" -m common.processes $BASHPID "$0" -c "$1"; echo on'


def alive(process):
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(processes, seconds=5):
    end = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, processes))


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("pool", signal.SIGTERM),
        ("pool", signal.SIGKILL),
        ("children", signal.SIGTERM),
        ("children", signal.SIGKILL),
        ("children", signal.SIGINT),
        ("script", signal.SIGTERM),
        ("script", signal.SIGKILL),
    ],
)
def test_workers_and_children_end_with_their_command(kind, number):
    command = {
        "pool": [sys.executable, "-c", POOL],
        "children": [sys.executable, "-c", CHILDREN, NAP],
        "script": ["bash", "-c", SCRIPT, sys.executable, NAP],
    }[kind]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        started = [
            int(name) for _ in range(2 if kind == "children" else 1) for name in process.stdout.readline().split()
        ]
        assert len(started) == (1 if kind == "script" else 2) and all(map(alive, started))
        process.send_signal(number)
        rest = process.stdout.read()
    assert gone(started)
    assert process.returncode == -number or (number == signal.SIGINT and process.returncode in (1, 130))
    assert "on" not in rest and "codes" not in rest  # the third task was not begun, and nothing went on


def test_contents_are_hashed_again_when_a_file_was_touched(tmp_path):
    path, cache = tmp_path / "a", tmp_path / "cache.json"
    path.write_text("1")
    contents = Contents(cache)
    first = contents.all([path])
    contents.save()
    times = path.stat()
    path.write_text("2")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time
    assert Contents(cache).all([path]) != first
    path.write_text("1")
    assert Contents(cache).all([path]) == first
    cache.write_text('{"states": 3')
    assert Contents(cache).all([path]) == first
