"""The command that makes an image of the page again, and a folder of all that it needs."""

from __future__ import annotations

import dataclasses
import shlex
import zipfile
from pathlib import Path
from typing import Any

from cldm.synthesis.options import SynthesisOptions
from cldm.synthesis.saving_options import PRESETS
from common.classes import split_variant, table_file
from common.house import PREFIX
from common.options import words
from web.painting import ITEMS, Painted

SCRIPT = "again.sh"
_ROOT = Path(__file__).resolve().parents[1]


def command_words(options: SynthesisOptions, folder: str = ".", out: str = "again") -> list[str]:
    """The words of the command that makes the same images of a folder.

    Args:
        options: of the images.
        folder: that holds mask, reference and list.
        out: folder of the images.
    """
    named: dict[str, Any] = {name: getattr(options, name).resolve() for name in ("config", "ckpt")}
    named["classes"] = None if options.classes is None else _absolute(options.classes)
    here = dataclasses.replace(options, **named, data_root=folder, items=str(Path(folder, ITEMS)), outdir=Path(out))
    defaults = {one.name: one.default for one in dataclasses.fields(options)}
    # what a preset sets, and was set back to the usual default, could not be told from what was not given
    if any(getattr(options, name) == defaults[name] for name in PRESETS[options.preset]):
        here = dataclasses.replace(here, preset="published")
    program = ["tisynth", "synthesize"] if PREFIX else ["bash", str(_ROOT / "inference.sh")]
    typed = words(here)
    seed = f"--seed={options.seed}"  # always: it is what one changes first
    return [*program, *typed, *([] if seed in typed else [seed])]


def command_line(options: SynthesisOptions, folder: str = ".", out: str = "again") -> str:
    """The same as it is typed, an option a line."""
    lines: list[str] = []
    for word in command_words(options, folder, out):
        if word.startswith("--") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)


def _absolute(table: str) -> str:
    """A class table's path from the root, as the command may be typed anywhere; the name of a built-in one stays."""
    file, variant = table_file(table), split_variant(table)[1]
    if file is None:
        return table
    return f"{file.resolve()}:{variant}" if variant else str(file.resolve())


def bundle(painted: Painted) -> Path:
    """A zip file beside the images: they, mask, reference, list, and the command as a script that makes them again."""
    path = painted.folder / "tisynth.zip"
    script = (
        "#!/usr/bin/env bash\n# Makes the images of this folder again, into the folder again.\n"
        f'cd "$(dirname "$0")" || exit 1\n{command_line(painted.options)}\n'
    )
    (painted.folder / SCRIPT).write_text(script, encoding="utf-8")
    with zipfile.ZipFile(path, "w") as file:
        for one in sorted(painted.folder.rglob("*")):
            if one.is_file() and one != path:
                file.write(one, Path("tisynth", one.relative_to(painted.folder)))
    return path
