"""What the pages tell to type exists: options of each command, files, tests; and the script that prepares data runs."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cldm.synthesis.records import Sample
from cldm.training.published_line import TRAINER, WITHOUT_EFFECT
from common import command as commands
from common.bands import Bands
from common.options import from_namespace
from post_processing.filter_state import FilteredRecord, RealLoss, RealRecord
from tests.conftest import ROOT, SMALL
from tisynth.__main__ import COMMANDS

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "configs" / "gss" / "README.md")
    if path.name != "CHANGELOG.md"  # tells of what was, too
)
FOLDERS = "cldm|common|configs|demo|docs|gss|importing|ldm|post_processing|scripts|segmentation|tests|web"
MADE = ("demo/output", "configs/train/my")  # by commands, or by the reader
COMMAND = re.compile(
    r"(?:^|\s)(?:bash (?P<shell>[a-z]+)\.sh|(?:python|torchrun .*) -m scripts\.(?P<module>\w+)"
    r"|tisynth (?P<name>[a-z][a-z-]+))(?=\s|$)"
)
OPTION = re.compile(r"--[A-Za-z][\w-]*")
LIGHTNING = {f"--{name}" for name in (*TRAINER, *WITHOUT_EFFECT, "accelerator", "devices", "resume_from_checkpoint")}


def blocks(text):
    """Lines of code blocks without a language, continued ones joined."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
        if language in ("", "bash"):
            yield from block.replace("\\\n", " ").splitlines()


def inline(text):
    """Code within sentences; not in a table's first column, which says what others call a thing."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.M)
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", text)]


@pytest.fixture(scope="module")
def options():
    """Options of each command, as --help shows them: filled by the test."""
    return {}


def script_of(match):
    """The script that a line calls, under whatever of its names."""
    if match["name"]:
        assert match["name"] in COMMANDS, match[0]
        return COMMANDS[match["name"]][0]
    return match["shell"] or match["module"]


def options_of(command, known, cli):
    if command not in known:
        assert (ROOT / "scripts" / f"{command}.py").is_file(), command
        known[command] = set(OPTION.findall(cli(command, "--help")))
        if command == "segmentor":  # a command within the command
            known[command] |= set(OPTION.findall(cli(command, "predict", "--help")))
        known[command] |= {option.replace("-", "_").replace("__", "--", 1) for option in known[command]}
        known[command] |= LIGHTNING if command == "train" else set()
    return known[command]


class TakenError(Exception):
    """A command has taken its words, and would begin."""


@pytest.fixture
def refusal(cli, monkeypatch):
    """What a command says of its words, up to where the work would begin; None if it takes them."""

    def taken(options, namespace):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "is_dir", lambda path: True)  # the reader's folders
            from_namespace(options, namespace)
        raise TakenError

    def ask(command, words):
        try:
            return cli.refused(command, *words)
        except TakenError:
            return None

    monkeypatch.setattr(commands, "from_namespace", taken)
    return ask


def words_of(rest):
    """What stands behind a command, as a shell has it; what the shell computes is a 1."""
    computed = re.sub(r"\$\(\(.*\)\)|\$\(.*?\)|\$\w+", "1", rest)
    return shlex.split(re.split(r"\s(?:&&|[|;])\s", computed)[0], comments=True)


@pytest.mark.parametrize("page", [*PAGES, *(path.name for path in ROOT.glob("*.sh"))])
def test_commands_take_the_lines(page, refusal):
    """Whole lines: what is required is there, values are in bounds, options go together."""
    text = (ROOT / page).read_text()
    if page.endswith(".sh"):
        examples = re.findall(r"^  bash .*", text.replace("\\\\\n", " ").replace("\\\n", " "), re.M)
        lines = [line.removesuffix('" >&2') for line in examples]
        assert lines
    else:
        lines = blocks(text)
    for line in lines:
        match = COMMAND.search(line)
        if match and "..." not in line and "$tools" not in line and match["name"] != "configs":
            assert refusal(script_of(match), words_of(line[match.end() :])) is None, f"{page}: {line.strip()}"


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page, cli, options):
    text = (ROOT / page).read_text()
    for line in [*blocks(text), *inline(text)]:
        match = COMMAND.search(line)
        if match is None or "$tools" in line or match["name"] == "configs":
            continue
        known = options_of(script_of(match), options, cli)
        for word in shlex.split(line[match.end() :], comments=True):
            name = word.partition("=")[0]
            assert not OPTION.fullmatch(name) or name in known, f"{page}: {line.strip()}: {name}"
    everywhere = set().union(
        LIGHTNING,
        *(
            options_of(path.stem, options, cli)
            for path in ROOT.glob("scripts/*.py")
            if '__name__ == "__main__"' in path.read_text()
        ),
    )
    for code in inline(text):
        if code.startswith("--"):
            assert OPTION.match(code)[0] in everywhere, f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_files_and_tests_exist(page):
    text = (ROOT / page).read_text()
    for name in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w", "\n".join([*blocks(text), *inline(text)])):
        stands_for_any = re.search(r"/[A-Z]+(\.\w+)?$", name)
        there = (ROOT / name).exists() or (ROOT / "tests" / name).exists()  # docs/reliability.md names tests from there
        assert stands_for_any or name.startswith(MADE) or there, f"{page}: {name}"
    for name, test in re.findall(r"`(tests/[\w/]+\.py): (test_\w+)", text):
        assert f"def {test}(" in (ROOT / name).read_text(), f"{page}: {name}: {test}"


def anchors(text):
    """What a link may name behind ``#``: headings as MkDocs and GitHub turn them into names."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Relative links and pictures; MkDocs checks them as well, but it is not among what the tests need."""
    path = ROOT / page
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if "://" in target:
            continue
        name, _, place = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.is_file(), f"{page}: {target}"
        if page.startswith("docs/"):  # the site has no other files
            assert linked.is_relative_to(ROOT / "docs"), f"{page}: {target}"
        if place and linked.name == "commands.md":
            assert place in COMMANDS, f"{page}: {target}"
        elif place:
            assert place in anchors(linked.read_text()), f"{page}: {target}"


def test_each_page_is_in_the_sites_menu():
    menu = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(menu) == sorted(pages)


def test_the_reference_names_what_is_there():
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M):
            module, _, last = name.rpartition(".")
            path = ROOT / f"{name.replace('.', '/')}.py"
            assert path.is_file() or defined(ROOT / f"{module.replace('.', '/')}.py", last), f"{page.name}: {name}"


def test_formats_names_every_field():
    told = (ROOT / "docs" / "formats.md").read_text()
    fields = {name for kind in (Sample, FilteredRecord, RealRecord, RealLoss) for name in kind.model_fields}
    assert [name for name in sorted(fields) if f"`{name}`" not in told] == []
    told = (ROOT / "docs" / "geotiff.md").read_text()
    assert [name for name in Bands.model_fields if f"`{name}`" not in told] == []


def test_the_script_that_prepares_data(scenes, tmp_path, cli, monkeypatch):
    (script,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/from_published.md").read_text(), re.S | re.M)
    for split in ("train", "test"):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "prepare.py",
                *map(
                    str,
                    (
                        scenes / f"img_{split}",
                        scenes / f"label_{split}",
                        tmp_path,
                        split,
                        scenes / "classes.json",
                        scenes / "ref_img",
                    ),
                ),
            ],
        )
        exec(compile(script.replace("SIDE = 512", "SIDE = 16"), "prepare.py", "exec"), {"__name__": "__main__"})
    first = json.loads((tmp_path / "inference_train_items.json").read_text().splitlines()[0])
    assert first["prompt"].startswith("a satellite image of ") and (tmp_path / first["ref_image"]).is_file()
    assert len(list((tmp_path / "label_train").iterdir())) == 4 * 8
    out = cli(
        "train",
        "--base",
        SMALL,
        "--config-model",
        SMALL,
        "-l",
        tmp_path / "logs",
        "--data-root",
        tmp_path,
        "--train-txt-file",
        tmp_path / "train_set_items.json",
        "--val-txt-file",
        tmp_path / "test_set_items.json",
        f"--model.params.classes={scenes / 'classes.json'}",
        "--gpus",
        "cpu",
        "--dry-run",
        "data.params.train.params.size=16",
        "data.params.validation.params.size=16",
    )
    assert "dry run" in out


def defined(path, dotted):
    """Whether a file defines a function or class, written ``name`` or ``Class.name``."""
    body = ast.parse(path.read_text()).body
    for name in dotted.split("."):
        found = [node for node in body if getattr(node, "name", None) == name]
        if not found:
            return False
        body = found[0].body
    return True


def test_each_of_the_papers_ideas_is_where_the_readme_says():
    rows = re.findall(r"^\| (.+?) \| `(\S+\.py): ([\w.]+)` \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) >= 12
    assert [row for row in rows if not defined(ROOT / row[1], row[2])] == []


def test_the_figure_is_what_its_command_draws(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "architecture.py", tmp_path / "drawn.svg"], check=True)
    assert (tmp_path / "drawn.svg").read_bytes() == (ROOT / "docs" / "architecture.svg").read_bytes()
