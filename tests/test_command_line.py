"""What all commands have in common: numbers with bounds, texts of one line, and no option without them."""

import argparse
import math
import runpy
import subprocess
import sys

import pytest

from common import command as cli
from tests.conftest import ROOT

COMMANDS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py") if "parser(" in p.read_text() and p.stem != "cli")
BEYOND = ("9" * 400, "-" + "9" * 400, "1e999", "nan", "1_0", "٣", "")
ODD = ("a\0b", "a\nb", "a\rb", "\x1b[31m", "a\ud800", "a\u2028b")


class _Seen(Exception):
    pass


@pytest.fixture
def parser_of(monkeypatch):
    """The parser of a command."""

    def parser_of(name):
        seen = []

        def parse(self, *args, **options):
            seen.append(self)
            raise _Seen

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", parse)
        monkeypatch.setattr(sys, "argv", [name])
        with pytest.raises(_Seen):
            runpy.run_module(f"scripts.{name}", run_name="__main__")
        return seen[0]

    return parser_of


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_refuses_what_no_number_and_no_name_is(parser_of, name):
    parser = parser_of(name)
    assert isinstance(parser, cli.Parser)
    taken = []
    for action in parser._actions:
        if action.nargs == 0 or action.choices is not None:
            continue
        number = getattr(action.type, "__qualname__", "").startswith(("integer.", "number."))
        for odd in BEYOND if number else ODD:
            try:
                value = parser._get_value(action, odd)
            except argparse.ArgumentError as error:
                assert len(str(error)) < 300 and str(error).isprintable()
            else:
                taken.append((action.dest, odd, value))
    assert taken == []


def test_there_are_commands():
    assert {"train", "inference", "filter", "resample", "compare", "segmentor", "train_dvae"} <= set(COMMANDS)


def test_the_bounds_themselves_are_taken():
    assert cli.integer(1, 5)("5") == 5 and cli.integer(-3)("-3") == -3 and cli.integer(0)("+7") == 7
    assert cli.number(0, 1)("1") == 1 and cli.number(0)("1e-3") == 1e-3 and math.isclose(cli.number(-1)("-.5"), -0.5)
    assert cli.name("runs/a b.é") == "runs/a b.é"


def test_an_output_that_nobody_reads_any_more_is_no_failure():
    work = (
        "from common import command as cli\ndef main():\n    while True: print('x' * 1000, flush=True)\ncli.run(main)"
    )
    ended = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -n 1; exit "${PIPESTATUS[0]}"', sys.executable, work],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (141, "")
