"""Commands killed at random moments and started again end as an unbroken run does; see ``tests.faults.kills``."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.faults.scenarios import SCENARIOS

# only in longer runs: compare, which starts a process a training, those that save as filter and train do, and
# inference, which tests/synthesis/test_synthesis.py kills
QUICK = ["train", "filter", "segmentor"]


def test_killed_commands_end_as_unbroken_ones(request, tmp_path):
    kills = request.config.getoption("--kills")
    commands = QUICK if kills == 1 else list(SCENARIOS)
    harness = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.faults.kills",
        "--kills",
        kills,
        "--folder",
        tmp_path,
        "--seed",
        request.config.getoption("--seed"),
        "--commands",
        *commands,
    ]
    ended = subprocess.run(list(map(str, harness)), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    for command in commands:
        assert f"{command}: {kills} kills" in ended.stdout


def test_the_harness_sees_what_is_wrong(tmp_path):
    """A result that differs, a file that does not open, and a process left running are faults."""
    from tests.faults import kills, scenarios

    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert [fault.split(":")[0] for fault in scenarios.damaged_files(tmp_path)] == ["cut.png"]
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & exit 0"], start_new_session=True)
    leader.wait()
    left = kills.session_of(leader.pid)
    assert len(left) == 1
    subprocess.run(["kill", *map(str, left)], check=True)
    with pytest.raises(RuntimeError, match="unbroken run ended with"):
        kills.unbroken(
            scenarios.Scenario("resample", lambda base, out: ["--nonsense"], lambda out: {}), tmp_path, tmp_path / "out"
        )
