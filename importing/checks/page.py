"""What a check found as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from common.classes import ClassTable
from common.errors import InputError
from common.pictures import colorize, data_uri
from importing.checks.facts import Facts
from importing.checks.findings import SEVERITIES, Finding
from importing.pictures import read_picture

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td i { display: block; height: .35rem; background: #2a6fbb; } th i { display: inline-block; width: .9rem;
height: .9rem; margin-right: .4rem; vertical-align: -.1rem; border: 1px solid var(--line); }
section { border-left: 4px solid var(--line); padding: .2rem 1rem; margin: 1rem 0; overflow-wrap: anywhere; }
.error { border-color: #c0392b; } .warning { border-color: #d68910; } .note { border-color: #2a6fbb; }
section b { text-transform: uppercase; font-size: .8rem; margin-right: .6rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0; } .row figure { margin: 0; max-width: 48%; }
.row img { max-width: 100%; height: auto; }
figcaption, small { font-size: .8rem; opacity: .8; overflow-wrap: anywhere; }
"""
_EXAMPLES = 20  # lines of a finding
_GROUPS = 6  # groups of pictures of a finding
_SIDE = 200  # pixels of a picture
_SAMPLES = 3  # pairs of each split


def page(report: Mapping[str, Any], findings: Sequence[Finding], facts: Sequence[Facts], table: ClassTable) -> str:
    """The whole page: shares of classes, findings with pictures, and a few pairs of each split."""
    told = f"{report['errors']} errors, {report['warnings']} warnings, {report['notes']} notes"
    parts = [f"<h1>{escape(report['data'])}</h1><p>{told}</p>", _shares(report, table), "<h2>Findings</h2>"]
    parts += [_finding(finding, table) for finding in findings] or ["<p>Nothing was found.</p>"]
    parts.append("<h2>Examples</h2>")
    for split in report["images"]:
        own = [one for one in facts if one.split == split and not one.image_fault and not one.mask_fault]
        parts.append(f"<h3>{escape(split)}</h3>")
        step = max(len(own) // _SAMPLES, 1)
        for one in own[::step][:_SAMPLES]:
            parts.append(_row([one.image, *([] if one.mask is None else [one.mask])], table))
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><style>{_STYLE}</style>"
    return (
        f"<!doctype html>\n<html lang='en'><head><title>Check of {escape(report['data'])}</title>{head}</head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _shares(report: Mapping[str, Any], table: ClassTable) -> str:
    """Images and shares of classes by split, as a table with bars."""
    splits = list(report["images"])
    head = "".join(f"<th>{escape(split)}</th>" for split in splits)
    rows = ["<tr><th>images</th>" + "".join(f"<td>{report['images'][split]}</td>" for split in splits) + "</tr>"]
    colors = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in table.palette.tolist()]
    for name, color in zip([*table.names, "unlabeled"], [*colors, "#000000"], strict=True):
        cells = []
        for split in splits:
            share = report["shares"].get(split, {}).get(name)
            bar = "" if share is None else f"{share:.2%}<i style='width:{100 * share:.1f}%'></i>"
            cells.append(f"<td>{bar}</td>")
        rows.append(f"<tr><th><i style='background:{color}'></i>{escape(name)}</th>{''.join(cells)}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _finding(finding: Finding, table: ClassTable) -> str:
    lines = "<br>".join(map(escape, finding.examples[:_EXAMPLES]))
    more = len(finding.examples) - _EXAMPLES
    rest = f"<br>and {more} more" if more > 0 else ""
    rows = "".join(_row(group, table) for group in finding.pictures[:_GROUPS])
    meaning = SEVERITIES[finding.severity]
    return (
        f"<section class='{finding.severity}'><b title='{escape(meaning)}'>{finding.severity}</b>"
        f"<code>{escape(finding.code)}</code> {escape(finding.message)}<br><small>{lines}{rest}</small>{rows}</section>"
    )


def _row(paths: Sequence[Path], table: ClassTable) -> str:
    """Pictures side by side; masks, which lie in a folder ``label_...``, in their classes' colors."""
    cells = []
    for path in paths:
        is_mask = path.parent.name.startswith("label_")
        try:
            pixels = colorize(table.labels.read(path), table.palette) if is_mask else read_picture(path).shown()
        except InputError as error:
            cells.append(f"<figure><figcaption>{escape(str(error))}</figcaption></figure>")
            continue
        address = data_uri(Image.fromarray(pixels), _SIDE, lossless=is_mask)
        name = f"{path.parent.name}/{path.name}"
        cells.append(
            f"<figure><img alt='{escape(name)}' src='{address}'><figcaption>{escape(name)}</figcaption></figure>"
        )
    return f"<div class='row'>{''.join(cells)}</div>"
