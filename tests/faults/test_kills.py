"""Commands killed at random moments and started again end as an unbroken run does; see ``tests.faults.kills``."""

import re
import subprocess
import warnings

import pytest

from tests.children import Child
from tests.faults import kills, scenarios
from tests.faults.scenarios import SCENARIOS

# compare starts a process a training, a minute in all: only in longer runs
QUICK = ["train", "inference", "filter", "resample", "segmentor", "dvae"]


def test_killed_commands_end_as_unbroken_ones(request, tmp_path):
    count, seed = (request.config.getoption(name) for name in ("--kills", "--seed"))
    commands = QUICK if count == 1 else list(SCENARIOS)

    def harness():
        warnings.simplefilter("ignore")  # of libraries in the commands; other tests look at them
        kills.run_kills(commands, count, seed, tmp_path)

    ran = Child(tmp_path / "log", harness)
    assert ran.wait(24 * 3600) == 0, ran.said()
    for command in commands:
        assert re.search(rf"^{command}: {count} kills, \d+ starts, 0 faults", ran.said(), re.M), ran.said()


def test_the_harness_sees_what_is_wrong(tmp_path):
    """A result that differs, a file that does not open, and a process left running are faults."""
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
