"""The model card of an exported folder, as Hugging Face shows it; what nobody has said stays blank, and says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cldm.control_ldm import ControlLDM
from cldm.diffusers_export.options import ExportOptions
from common.bands import Bands
from common.classes import ClassTable
from common.errors import InputError
from common.schema import load_json, one_line

BLANK = "*Not stated.*"
MOST_SCORES = 60
NO_SCORES = ("options", "settings")  # sections of our reports that say what was asked


def numbers_in(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each number of a file of scores: ``classes.road.IoU``, 0.71."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from numbers_in(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield name, float(content)


def scores_table(files: tuple[Path, ...]) -> str:
    """A table of the numbers that files of scores hold.

    Raises:
        InputError: no JSON, or one without numbers.
    """
    if not files:
        return BLANK
    rows = []
    for file in files:
        content = load_json(file)
        if isinstance(content, dict):
            content = {name: value for name, value in content.items() if name not in NO_SCORES}
        found = list(numbers_in(content))
        if not found:
            raise InputError(f"‹scores› {file}: holds no number; name a file that a command of this project wrote")
        rows += [f"| {file.name} | {one_line(name, 60)} | {value:.4g} |" for name, value in found[:MOST_SCORES]]
    return "\n".join(["| file | score | value |", "| --- | --- | --- |", *rows])


def bands_section(bands: Bands | None) -> str:
    """What the card says of the images' bands: which, and what range of their numbers is -1 to 1."""
    if bands is None:
        return "RGB of 8 bits."
    scales, offsets = bands.scales or [1.0] * bands.count, bands.offsets or [0.0] * bands.count
    names = bands.names or [""] * bands.count
    rows = [
        f"| {number} | {name} | {low:g} | {high:g} | {scale:g} | {offset:g} |"
        for number, name, (low, high), scale, offset in zip(
            bands.numbers, names, bands.ranges, scales, offsets, strict=True
        )
    ]
    head = ["| band in files | name | low (-1) | high (1) | scale | offset |", "| --- | --- | --- | --- | --- | --- |"]
    said = f"Numbers are {bands.dtype}" + ("" if bands.nodata is None else f", {bands.nodata:g} stands for no data")
    shown = ", ".join(str(bands.numbers[index]) for index in bands.seen)
    return "\n".join(
        [
            f"{said}. Low and high are of stored x scale + offset; what lies beyond is cut.",
            "A reference is such numbers, (height, width, bands), and so is what is painted, with",
            f'`output_type="numbers"`. Pictures show bands {shown}.',
            "",
            *head,
            *rows,
        ]
    )


def mapping(table: ClassTable | None) -> str:
    """Python that makes class ids of a mask file's ids; empty where these are the same."""
    if table is None:
        return ""
    class_of = table.labels.table  # -1 where a file's id is none
    known = np.flatnonzero(class_of >= 0)
    if (class_of[known] == known).all():
        return ""
    return f"""of_id = np.full(256, -1)  # from ids of mask files
of_id[{known.tolist()}] = {class_of[known].tolist()}
mask = of_id[mask]
"""


def example(model: ControlLDM, table: ClassTable | None) -> str:
    """Python that paints by the folder, of masks in files as the class table says."""
    reads, given, opened, saved = "", "", "", 'images[0].save("made.png")'
    if model.fuses:
        given = ', Image.open("reference.jpg").convert("RGB")'
    more = ""
    if model.bands is not None:
        reads, saved, more = "import rasterio\n", "images[0]  # (height, width, bands)", ', output_type="numbers"'
        if model.fuses:
            given, opened = ", reference", 'reference = rasterio.open("reference.tif").read().transpose(1, 2, 0)\n'
    call = f'pipe(mask{given}, prompt="a satellite image"{more}).{saved}'
    mapped = mapping(table)
    said = "" if mapped else "  # class ids, 255 for no class"
    return f"""import numpy as np
{reads}from diffusers import DiffusionPipeline
from PIL import Image

pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
mask = np.asarray(Image.open("mask.png")){said}
{mapped}{opened}{call if model.bands is None else f"made = {call}"}"""


def model_card(options: ExportOptions, model: ControlLDM, table: ClassTable | None, index: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
        options: what is said of license, data and scores.
        model: what is exported.
        table: its classes.
        index: content of model_index.json.

    Raises:
        InputError: a file of scores that holds none.
    """
    title = options.title or options.out.absolute().name
    head: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "image-to-image"}
    head["tags"] = ["remote-sensing", "semantic-segmentation", "controlnet", "tisynth"]
    if options.license is not None:
        head["license"] = options.license
    classes = (
        "not known: ids from 0" if table is None else ", ".join(f"{i} {name}" for i, name in enumerate(table.names))
    )
    parts = "\n".join(
        f"| `{name}` | {entry[1]} | {entry[0]} |"
        for name, entry in index.items()
        if isinstance(entry, list) and not name.startswith("_")
    )
    reads = "a mask, a reference image and a text" if model.fuses else "a mask and a text"
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {title}

Paints satellite images from {reads} (TISynth, Information Fusion, 10.1016/j.inffus.2025.103839).

```python
{example(model, table)}
```

Written for diffusers {index["_diffusers_version"]}. `trust_remote_code` runs the Python files in this folder: read them
first. Images' sides are multiples of {model.multiple} pixels. Prompts are cut at
{model.cond_stage_model.tokenizer.max_length - 2} tokens.

| part | class | from |
| --- | --- | --- |
{parts}

## Classes

{classes}

## Bands

{bands_section(model.bands)}

## License

{options.license or BLANK}

## Data

{options.data or BLANK}

## Scores

{scores_table(options.scores)}
"""
