"""The command that makes an image of the page again, and a folder of all that it needs."""

from __future__ import annotations

import dataclasses
import shlex
import zipfile
from pathlib import Path
from typing import Any

from cldm.synthesis.options import SynthesisOptions
from cldm.synthesis.saving_options import PRESETS
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
    absolute: dict[str, Any] = {name: _absolute(getattr(options, name)) for name in ("config", "ckpt", "classes")}
    here = dataclasses.replace(options, **absolute, data_root=folder, items=str(Path(folder, ITEMS)), outdir=Path(out))
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


def _absolute(path: Path | str | None) -> Path | str | None:
    """A path from the root, as the command may be typed anywhere; a name of a built-in class table stays."""
    if path is None or not Path(path).exists():
        return path
    return type(path)(Path(path).resolve())


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
