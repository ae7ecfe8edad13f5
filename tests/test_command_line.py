"""What all commands have in common: numbers with bounds, texts of one line, and no option without them."""

import argparse
import math
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from common import command as cli
from common.converters import integer, name, number
from common.errors import InputError
from common.options import Options, option, recorded, words
from tests.conftest import ROOT

COMMANDS = sorted(
    p.stem for p in (ROOT / "scripts").glob("*.py") if re.search(r"parser\(|read_options\(", p.read_text())
)
# to read their help, or for the whole of their work
WITHOUT_TORCH = (
    "allot",
    "benchmark",
    "check_data",
    "compare",
    "count_memory",
    "distill",
    "evaluate_first_stage",
    "evaluate_samples",
    "export_diffusers",
    "filter",
    "import_data",
    "import_diffusers",
    "inference",
    "init_checkpoint",
    "resample",
    "scene",
    "train",
    "train_vae",
    "web",
)
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


def test_help_does_not_wait_for_torch():
    """One process reads all helps: torch and mmseg take seconds to load, each."""
    work = f"""
import runpy, sys
for name in {WITHOUT_TORCH}:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module("scripts." + name, run_name="__main__")
    except SystemExit as ended:
        assert ended.code == 0
    assert not {{"torch", "mmengine", "mmcv", "mmseg"}} & set(sys.modules), name
"""
    ended = subprocess.run([sys.executable, "-c", work], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_there_are_commands():
    assert {"train", "inference", "filter", "resample", "compare", "segmentor", "train_dvae"} <= set(COMMANDS)


def test_the_bounds_themselves_are_taken():
    assert integer(1, 5)("5") == 5 and integer(-3)("-3") == -3 and integer(0)("+7") == 7
    assert number(0, 1)("1") == 1 and number(0)("1e-3") == 1e-3 and math.isclose(number(-1)("-.5"), -0.5)
    assert name("runs/a b.é") == "runs/a b.é"


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


@dataclass(frozen=True, kw_only=True)
class Work(Options):
    """Options of a made-up work."""

    folder: Path = option(positional=True, help="where")
    times: int = option(3, convert=integer(1, 9), help="how often")
    rate: float | None = option(None, convert=number(0, 1), help="how fast")
    masks: tuple[str, ...] = option((), names=("--masks", "--published-masks"), help="which")
    kind: str = option("a", choices=("a", "b"), help="which kind")
    dry_run: bool = option(False, help="nothing is done")


def test_options_are_those_of_their_dataclass():
    assert cli.read_options(Work, "", ["x"]) == Work(folder=Path("x"))
    words = ["x", "--times=4", "--rate", "0.5", "--published_masks", "m", "n", "--kind", "b", "--dry_run"]
    expected = Work(folder=Path("x"), times=4, rate=0.5, masks=("m", "n"), kind="b", dry_run=True)
    assert cli.read_options(Work, "", words) == expected


@pytest.mark.parametrize(
    ("field", "value"), [("times", 0), ("times", 10), ("rate", 1.5), ("rate", math.nan), ("kind", "c")]
)
def test_calls_from_python_are_held_to_the_same_bounds(field, value):
    with pytest.raises(InputError, match=f"^{field} {value}: "):
        Work(folder=Path("x"), **{field: value})


def test_a_refusal_names_the_field_in_python_and_the_option_on_the_command_line():
    error = InputError("‹times› 7: too often; give ‹published_masks› or ‹masks›, not a ‹folder›")
    assert str(error) == "times 7: too often; give published_masks or masks, not a folder"
    cli.read_options(Work, "", ["x"])
    assert cli.as_typed(error) == "--times 7: too often; give published_masks or --masks, not a folder"


def test_options_refuse_what_their_command_lines_refuse(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.read_options(Work, "", ["x", "--times", "0"])
    assert ended.value.code == 2 and "--times: 0: write a whole number, 1 to 9" in capsys.readouterr().err


ALL_GIVEN = Work(folder=Path("x"), times=4, rate=1e-7, masks=("m", "n o"), kind="b", dry_run=True)


@pytest.mark.parametrize("work", [Work(folder=Path("x")), ALL_GIVEN, Work(folder=Path("-x"), masks=("=", "--"[:1]))])
def test_words_are_read_as_the_options_that_they_were_made_of(work):
    assert cli.read_options(Work, "", words(work)) == work


def test_words_name_what_is_no_default():
    assert words(Work(folder=Path("x"), times=3, rate=0.5)) == ["x", "--rate=0.5"]


def test_reports_keep_options_as_plain_values():
    given = {"folder": "x", "times": 4, "rate": 1e-7, "masks": ["m", "n o"], "kind": "b", "dry_run": True}
    assert recorded(ALL_GIVEN) == given


def test_a_note_names_what_was_typed(capsys):
    cli.read_options(Work, "", ["x"])
    cli.note("left out (‹times›)")
    assert capsys.readouterr().err == "left out (--times)\n"
