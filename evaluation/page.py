"""The comparison as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.pictures import colorize, data_uri
from evaluation.arms_text import arms_table, curve_sentence, curve_table, headline, percent
from evaluation.comparison import SCORES, no_spread, verdict

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #2a6fbb; --bad: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--line); padding: .3rem 1rem; }
.better { border-color: var(--good); } .worse { border-color: var(--bad); }
table { border-collapse: collapse; margin: .8rem 0; } caption { text-align: left; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.better { color: var(--good); font-weight: 600; } td.worse { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; overflow-x: auto; } figure img { background: white; max-width: 100%; height: auto; }
.gallery { display: grid; grid-template-columns: repeat(4, 1fr); gap: .4rem; } .gallery img { width: 100%; }
.gallery p, figcaption, small { font-size: .8rem; margin: 0; opacity: .8; }
.gallery .name { grid-column: 1 / -1; margin-top: .6rem; }
.legend span { display: inline-block; margin-right: 1rem; } .legend i { display: inline-block; width: .9rem;
height: .9rem; vertical-align: -.1rem; margin-right: .3rem; border: 1px solid var(--line); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .6rem; }
"""


def _cells(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return '<td colspan="4">not in the test set</td>'

    def spread(value: Mapping[str, float | None]) -> str:
        return percent(value["mean"]) + ("" if value["sd"] is None else f" ± {percent(value['sd'])}")

    difference = entry["difference"]
    word, interval = verdict(dict(difference)), "–"
    if no_spread(difference):
        word, interval = "unclear", "the same for all seeds"
    elif difference["low"] is not None:
        interval = f"{percent(difference['low'], True)} … {percent(difference['high'], True)}"
    return (
        f"<td>{spread(entry['baseline'])}</td><td>{spread(entry['joint'])}</td>"
        f'<td class="{word}">{percent(difference["mean"], True)}</td><td>{interval}</td>'
    )


def score_table(rows: Mapping[str, Mapping[str, Any] | None], title: str, arm: str = "joint") -> str:
    """A table of ``paired_difference`` results, in percent."""
    head = "".join(f"<th>{text}</th>" for text in (title, "real", escape(arm), "difference", "95 % interval"))
    body = "".join(f"<tr><td>{escape(name)}</td>{_cells(entry)}</tr>" for name, entry in rows.items())
    return f"<table><tr>{head}</tr>{body}</table>"


def sentence(split: str, result: Mapping[str, Any], arm: str = "joint") -> str:
    """What the comparison with one arm says about mIoU, in words."""
    entry = result["scores"]["mIoU"]
    difference, seeds = entry["difference"], entry["seeds"]
    text = (
        f"On {split}, {arm} training changes mIoU from {percent(entry['baseline']['mean'])} to "
        f"{percent(entry['joint']['mean'])} %, by {percent(difference['mean'], True)} points"
    )
    if difference["low"] is None:
        return f"{text}; a single seed says nothing about chance."
    text += f" (95 % interval {percent(difference['low'], True)} to {percent(difference['high'], True)}, {seeds} seeds)"
    if result["verdict"] == "unclear":
        return f"{text}: no clear effect."
    few = f", as far as {seeds} seeds can tell" if seeds < 3 else ""
    return f"{text}: it {'helps' if result['verdict'] == 'better' else 'harms'}{few}."


def gallery(items: Sequence[Mapping[str, Any]], classes: Sequence[str], palette: NDArray[Any]) -> str:
    """Rows of mask, reference, synthesized image and filtered mask.

    Args:
        items: ``name``, ``caption``, and ``mask``, ``reference``, ``image``, ``filtered``: arrays, images or None.
        classes: C names.
        palette: uint8 (C, 3), RGB.
    """
    rows = []
    for item in items:
        rows.append(f'<p class="name"><b>{escape(item["name"])}</b> {escape(item["caption"])}</p>')
        for key, label in (
            ("mask", "mask"),
            ("reference", "reference"),
            ("image", "synthesized"),
            ("filtered", "filtered mask"),
        ):
            content = item[key]
            if content is None:
                rows.append(f"<p>{label}: not given</p>")
                continue
            is_mask = isinstance(content, np.ndarray)
            address = data_uri(Image.fromarray(colorize(content, palette)) if is_mask else content, lossless=is_mask)
            rows.append(f'<div><img alt="{label} of {escape(item["name"])}" src="{address}"><p>{label}</p></div>')
    colors = [
        (f"#{red:02x}{green:02x}{blue:02x}", name)
        for (red, green, blue), name in zip(palette.tolist(), classes, strict=True)
    ]
    legend = "".join(
        f'<span><i style="background:{color}"></i>{escape(name)}</span>'
        for color, name in [*colors, ("#000000", "255: ignored or filtered out")]
    )
    return f'<p class="legend">{legend}</p><div class="gallery">{"".join(rows)}</div>'


def svg_image(svg: str | bytes, title: str) -> str:
    """A figure as an image element: in one, a browser runs no script of the SVG and fetches nothing for it.

    Args:
        svg: an <svg> element or file.
        title: alternative text.
    """
    content = svg.encode("utf-8", "xmlcharrefreplace") if isinstance(svg, str) else svg
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{b64encode(content).decode()}">'


def page(
    results: Mapping[str, Mapping[str, Any]],
    plots: Mapping[str, Sequence[str]],
    facts: Mapping[str, str],
    gallery_html: str = "",
    reports: Mapping[str, bytes] | None = None,
    title: str = "Real images alone, or joined by synthesized ones?",
) -> str:
    """The whole page: first in words what helps, then tables and figures.

    Args:
        results: by test split, see ``comparison_page.write_comparison``; or what ``compare`` gives, of the arm joint.
        plots: by test split, <svg> elements.
        facts: settings of the comparison, shown as a table.
        gallery_html: see ``gallery``.
        reports: further figures, SVG files, by title.
        title: the page's.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if "example" in title.lower():
        parts.append("<p><b>An example of what such a page says; no verdict on the method.</b></p>")
    arms = {split: result.get("arms") or {"joint": result} for split, result in results.items()}
    for split, compared in arms.items():
        if len(compared) > 1:
            parts += headline(split, compared, results[split].get("best"))
        else:
            parts += [
                f'<p class="verdict {one["verdict"]}">{escape(sentence(split, one, arm))}</p>'
                for arm, one in compared.items()
            ]
        parts += [
            f"<p>{escape(curve_sentence(split, varied, points))}</p>"
            for varied, points in results[split].get("curves", {}).items()
        ]
    for split, compared in arms.items():
        parts.append(f"<h2>Test set: {escape(split)}</h2>")
        if len(compared) > 1:
            parts.append(arms_table(compared))
        details = [
            score_table({name: one["scores"][name] for name in SCORES}, "score (%)", arm)
            + score_table(one["classes"], "IoU by class (%)", arm)
            for arm, one in compared.items()
        ]
        if len(compared) > 1:
            shown = "".join(f"<h3>{escape(arm)}</h3>{detail}" for arm, detail in zip(compared, details, strict=True))
            details = [f"<details><summary>All scores and classes of each arm</summary>{shown}</details>"]
        parts += details
        parts += [curve_table(*curve) for curve in results[split].get("curves", {}).items()]
        parts += [f"<figure>{svg_image(plot, f'scores on {split}')}</figure>" for plot in plots[split]]
    parts.append(
        "<small>Mean ± standard deviation over seeds; a seed's trainings differ in their data alone. "
        "The interval is Student's t over paired seeds; colored where it leaves out 0. "
        "A training that was stopped and resumed counts like an unbroken one: it has the same weights, to the "
        "bit on a CPU, and on a GPU with randomness.deterministic=True (not to be had of PSPNet and FastSCNN), but "
        "for augmentation with random numbers of its own (Albu).</small>"
    )
    for title, svg in (reports or {}).items():
        parts.append(f"<h2>{escape(title)}</h2><figure>{svg_image(svg, title)}</figure>")
    if gallery_html:
        parts.append(f"<h2>Synthesized images</h2>{gallery_html}")
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td style='text-align:left;white-space:normal'>{escape(value)}</td></tr>"
        for key, value in facts.items()
    )
    parts.append(f"<h2>How it was made</h2><table>{rows}</table>")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Comparison</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
