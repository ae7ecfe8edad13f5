"""The page of a closed loop: what each round brought, in words, numbers and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.bands import read_bands_file
from common.classes import ClassTable, load_class_table
from common.files import atomic_path, write_json
from common.pairing import IMAGE_SUFFIXES, list_files
from common.plots import plt
from evaluation.comparison_page import gallery_of
from evaluation.figures import BASELINE, JOINT, svg_text
from evaluation.improve.options import ImproveOptions
from evaluation.improve.stages import Round, best
from evaluation.page import STYLE, percent, svg_image

SHOWN = 4  # images of a round


def write_page(
    rounds: Sequence[Round], options: ImproveOptions, records: Mapping[int, Mapping[str, Any]], compared: Path | None
) -> Path:
    """Writes ``improve.json`` and ``improve.html``.

    Args:
        rounds: all, round 0 first.
        options: of the loop.
        records: what synthesis recorded of each round's images.
        compared: folder of the comparison on the test sets; None before it, or where there is none.

    Returns:
        the page.
    """
    out, table = options.out, load_class_table(str(options.class_table))
    bands = None if options.bands is None else read_bands_file(options.bands)
    winner = best(rounds)
    facts = [_facts(one, rounds[0]) for one in rounds]
    write_json({"best": winner.number, "rounds": facts}, out / "improve.json")
    parts = ["<h1>A closed loop of painting and learning</h1>", f'<p class="verdict">{escape(_sentence(rounds))}</p>']
    if compared is not None:
        link = f"{compared.name}/comparison.html"
        parts.append(f'<p>On the test sets, looked at once: <a href="{escape(link)}">{escape(link)}</a>.</p>')
    parts += [f"<figure>{svg_image(_curve(rounds), 'mean IoU by round')}</figure>", _table(rounds, facts, table)]
    for one in rounds[1:]:
        folder = out / "data" / one.folder.name / "label"
        pictures = gallery_of(
            one.folder / "images",
            folder,
            one.folder / "filtered",
            SHOWN,
            table,
            records.get(one.number, {}),
            str(out / "data"),
            bands,
        )
        parts.append(f"<h2>Round {one.number}: what was painted</h2>{pictures}")
    parts.append(
        "<small>Scores are of the validation scenes, of one training a round: they choose, they prove nothing. "
        "Trainings of another seed differ, too; the comparison at the end has intervals.</small>"
    )
    path = out / "improve.html"
    with atomic_path(path) as temporary:
        temporary.write_text(
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Closed loop</title>"
            f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>"
            f"<body>{''.join(parts)}</body></html>\n",
            encoding="utf-8",
        )
    return path


def _facts(one: Round, first: Round) -> dict[str, Any]:
    """A round's numbers."""
    painted, kept = (
        len(list_files(folder, IMAGE_SUFFIXES, str(folder))) if folder.is_dir() else 0
        for folder in (one.folder / "images", one.folder / "resampled" / "resampled_img")
    )
    return {
        "round": one.number,
        "mIoU": one.score,
        "gain": one.score - first.score,
        "painted": painted,
        "kept": kept,
        "classes": {name: scores.IoU for name, scores in one.metrics.classes.items()},
        "seconds": one.seconds,
    }


def _sentence(rounds: Sequence[Round]) -> str:
    """What came out, in words."""
    winner, real = best(rounds), rounds[0]
    count = f"{len(rounds) - 1} round{'s' if len(rounds) != 2 else ''}"
    if winner.number == 0:
        return (
            f"{count}, and none was better on the validation scenes than real images alone, mean IoU "
            f"{percent(real.score)} %."
        )
    return (
        f"{count}; round {winner.number} is the best on the validation scenes: mean IoU {percent(real.score)} -> "
        f"{percent(winner.score)} %."
    )


def _curve(rounds: Sequence[Round]) -> str:
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.axhline(100 * rounds[0].score, color=BASELINE, linewidth=1, label="real images alone")
    axes.plot([one.number for one in rounds], [100 * one.score for one in rounds], "-o", color=JOINT)
    axes.set(xlabel="round", ylabel="mean IoU (%), validation", xticks=[one.number for one in rounds])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return svg_text(figure)


def _table(rounds: Sequence[Round], facts: Sequence[Mapping[str, Any]], table: ClassTable) -> str:
    names = list(rounds[0].metrics.classes)
    head = "".join(
        f"<th>{escape(text)}</th>" for text in ("round", "painted", "kept", "minutes", "mIoU (%)", "gain", *names)
    )
    rows = []
    for fact in facts:
        cells = [
            str(fact["round"]),
            str(fact["painted"]),
            str(fact["kept"]),
            f"{sum(fact['seconds'].values()) / 60:.1f}",
            percent(fact["mIoU"]),
            percent(fact["gain"], sign=True),
            *(percent(fact["classes"].get(name)) for name in names),
        ]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    title = f"<caption>Rounds, and IoU by class ({len(table)} classes)</caption>"
    return f"<table>{title}<tr>{head}</tr>{''.join(rows)}</table>"
