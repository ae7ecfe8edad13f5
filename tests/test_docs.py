"""What the pages tell to type exists: options of each command, files, tests; and the script that prepares data runs."""

import ast
import json
import re
import shlex
import subprocess
import sys

import pytest

from cldm.training.published_line import TRAINER, WITHOUT_EFFECT
from tests.conftest import ROOT, SMALL

PAGES = [
    "docs/from_published.md",
    "docs/geotiff.md",
    "docs/made_to_help.md",
    "docs/memory.md",
    "docs/diffusers.md",
    "docs/proof.md",
    "docs/python.md",
    "docs/recipe.md",
    "docs/scenes.md",
    "docs/speed_and_use.md",
    "docs/audit.md",
    "docs/your_data.md",
    "README.md",
    "configs/gss/README.md",
]
FOLDERS = "cldm|common|configs|demo|docs|gss|importing|ldm|post_processing|scripts|segmentation|tests"
MADE = ("demo/output", "configs/train/my")  # by commands, or by the reader
COMMAND = re.compile(r"(?:^|\s)(?:bash ([a-z]+)\.sh|(?:python|torchrun .*) -m scripts\.(\w+))(?=\s|$)")
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


def options_of(command, known, cli):
    if command not in known:
        assert (ROOT / "scripts" / f"{command}.py").is_file(), command
        known[command] = set(OPTION.findall(cli(command, "--help")))
        if command == "segmentor":  # a command within the command
            known[command] |= set(OPTION.findall(cli(command, "predict", "--help")))
        known[command] |= {option.replace("-", "_").replace("__", "--", 1) for option in known[command]}
        known[command] |= LIGHTNING if command == "train" else set()
    return known[command]


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page, cli, options):
    text = (ROOT / page).read_text()
    for line in [*blocks(text), *inline(text)]:
        match = COMMAND.search(line)
        if match is None or "$tools" in line:
            continue
        known = options_of(match[1] or match[2], options, cli)
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
        assert name.startswith(MADE) or (ROOT / name).exists(), f"{page}: {name}"
    for name, test in re.findall(r"`(tests/[\w/]+\.py): (test_\w+)", text):
        assert f"def {test}(" in (ROOT / name).read_text(), f"{page}: {name}: {test}"


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
