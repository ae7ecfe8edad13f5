"""Kills commands at random moments, starts them again, and compares what comes out with an unbroken run.

  python -m tests.faults.kills --kills 100                       all commands in turn
  python -m tests.faults.kills --kills 30 --commands train filter --seed 7

A command runs in a process forked from this one, which has imported the libraries already, so that kills fall into its
work and not into its start-up. After each kill nothing may be left running, every file under a final name must open,
and in the end names, bytes, records and weights must be those of the unbroken run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.scenarios import SCENARIOS, Scenario, damaged_files, make_inputs, make_weights

SCRIPTS = sorted({scenario.script for scenario in SCENARIOS.values()})
PATIENCE = 300.0  # seconds until a command counts as hanging
END = 10.0  # seconds in which a killed command's children must end


@dataclass
class Outcome:
    """What the kills of one command showed; ``faults`` must be empty."""

    kills: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)


def start(scenario: Scenario, base: Path, out: Path, log: Path) -> int:
    """Starts a command in a process and a session of its own; returns the process."""
    argv = [str(part) for part in scenario.argv(base, out)]
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        sys.argv = [scenario.script, *argv]
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **scenario.environment}
        import torch

        torch.set_num_threads(1)
        module = importlib.import_module(f"scripts.{scenario.script}")
        _run(module.main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(main: object) -> None:
    from common import command as cli

    cli.run(main)  # type: ignore[arg-type]


def wait(child: int, seconds: float) -> int | None:
    """Exit code of a child, or minus its signal; None where it still runs after ``seconds``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def session_of(leader: int) -> list[int]:
    """Processes of a session that still run (Linux)."""
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z" and int(entry.name) != leader:
                alive.append(int(entry.name))
    return alive


def unbroken(scenario: Scenario, base: Path, out: Path) -> tuple[dict[str, object], float]:
    """Result and seconds of a run that nobody disturbs."""
    out.mkdir(parents=True)
    began = time.monotonic()
    log = out.with_suffix(".log")
    code = wait(start(scenario, base, out, log), PATIENCE)
    if code != 0:
        raise RuntimeError(f"{scenario.script}: unbroken run ended with {code}:\n{log.read_text()[-3000:]}")
    return scenario.result(out), time.monotonic() - began


def kill_until_done(
    name: str, scenario: Scenario, base: Path, out: Path, seconds: float, rng: random.Random, kills: int
) -> Outcome:
    """One folder: the command is killed ``kills`` times at random moments, then left alone."""
    outcome, log = Outcome(), out.with_suffix(".log")
    out.mkdir(parents=True)

    def fault(text: str) -> None:
        outcome.faults.append(f"{name}, kill {outcome.kills}: {text} ({log})")

    while True:
        child = start(scenario, base, out, log)
        outcome.runs += 1
        last = outcome.kills >= kills
        code = wait(child, PATIENCE if last else rng.uniform(0, 1.1 * seconds))
        if code is None and last:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            fault(f"hangs for {PATIENCE:.0f} s")
            return outcome
        if code is None:
            number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            os.kill(child, number)
            outcome.kills += 1
            ended = wait(child, 60)
            if ended is None:
                fault(f"still runs 60 s after signal {number}")
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            until = time.monotonic() + END
            while (left := session_of(child)) and time.monotonic() < until:
                time.sleep(0.02)
            for process in left:
                fault(f"process {process} is left running after signal {number}")
                os.kill(process, signal.SIGKILL)
            if bad := damaged_files(out):
                fault(f"damaged: {bad[0]}")
        elif code != 0:
            fault(f"start {outcome.runs} ended with {code}: {log.read_text()[-600:]}")
            return outcome
        else:
            break
    return outcome


def run_kills(commands: list[str], kills: int, seed: int, folder: Path, a_folder: int = 5) -> dict[str, Outcome]:
    """Kills each command ``kills`` times, ``a_folder`` times or more in one folder; prints a line a folder.

    Args:
        commands: of ``SCENARIOS``.
        kills: of each command.
        seed: of the moments.
        folder: working folder.
        a_folder: kills before a folder's run is left to end.
    """
    if not (folder / "inputs/classes.json").exists():
        make_inputs(folder / "inputs")
    for script in SCRIPTS:
        importlib.import_module(f"scripts.{script}")
    import torch

    torch.set_num_threads(1)  # threads would not survive the fork
    if not (folder / "inputs/small.safetensors").exists() and {"inference"} & set(commands):
        make_weights(folder / "inputs")
    outcomes = {}
    for name in commands:
        scenario, rng, total = SCENARIOS[name], random.Random(f"{seed} {name}"), Outcome()
        expected, seconds = unbroken(scenario, folder / "inputs", folder / name / "unbroken")
        number = 0
        while total.kills < kills and not total.faults[5:]:
            out = folder / name / f"killed_{number}"
            number += 1
            part = kill_until_done(
                name, scenario, folder / "inputs", out, seconds, rng, min(a_folder, kills - total.kills)
            )
            if not part.faults:
                found = scenario.result(out)
                differing = [key for key in {*expected, *found} if expected.get(key) != found.get(key)]
                part.faults += [f"{name}: {key} is not the unbroken run's ({out})" for key in sorted(differing)[:3]]
            total.kills += part.kills
            total.runs += part.runs
            total.faults += part.faults
            if not part.faults:
                shutil.rmtree(out)
            if part.kills == 0:  # always done before the kill: quicker than the clock
                seconds *= 0.7
        outcomes[name] = total
        print(
            f"{name}: {total.kills} kills, {total.runs} starts, {len(total.faults)} faults; unbroken {seconds:.1f} s",
            flush=True,
        )
        for text in total.faults:
            print(f"  {text}", flush=True)
    return outcomes


def main() -> int:
    """Entry point; exit code 1 where a kill did harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each command (20)")
    parser.add_argument("--commands", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="which (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder, removed if all went well)")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="tisynth_kills_"))
    outcomes = run_kills(args.commands, args.kills, args.seed, folder)
    if not (faults := sum(len(outcome.faults) for outcome in outcomes.values())) and not args.folder:
        shutil.rmtree(folder)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
