"""A comparison's scores as a table in Markdown and a figure: docs/proof.md and docs/benchmarks.md hold such.

python -m demo.proof_table OUT/comparison/comparison.json [more of the same real arm] [--split test --figure FILE.svg]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REAL = "real"


def points(share: float | None, sign: str = "") -> str:
    """A share of 1 in points, ``57.3``; a question mark where seeds are too few to say."""
    return "?" if share is None else f"{100 * share:{sign}.1f}"


def cells(arm: dict[str, Any], name: str) -> list[str]:
    """An arm's mean mIoU, and its mean difference to ``real`` with half the 95 % interval's width, in points.

    Args:
        arm: ``scores`` of an arm as ``comparison.json`` has them.
        name: ``baseline`` or ``joint``, whose mean it is.
    """
    score = arm["scores"]["mIoU"]
    if name == "baseline":
        return [points(score[name]["mean"]), ""]
    apart = score["difference"]
    half = None if apart["low"] is None else (apart["high"] - apart["low"]) / 2
    return [points(score[name]["mean"]), f"{points(apart['mean'], '+')} ± {points(half)}"]


def table(comparisons: list[dict[str, Any]]) -> list[str]:
    """Lines of one table: an arm a row, the real images' first; two columns a split.

    Args:
        comparisons: contents of ``comparison.json``; an arm of several is told as the last has it.
    """
    splits = [split for split in comparisons[0]["results"] if all(split in one["results"] for one in comparisons)]
    rows: dict[str, list[str]] = {}
    seeds: dict[str, int] = {}
    for comparison in comparisons:
        results = comparison["results"]
        first = results[splits[0]]["arms"]
        names = {REAL: next(iter(first)), **{name: name for name in first}}
        for name, kind in names.items():
            arms = [results[split]["arms"][kind] for split in splits]
            seeds[name] = arms[0]["scores"]["mIoU"]["seeds"]
            column = "baseline" if name == REAL else "joint"
            rows[name] = [cell for arm in arms for cell in cells(arm, column)]
    heads = [head for split in splits for head in (split, "to `real`")]
    lines = ["| arm | seeds | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    return lines + [f"| `{name}` | {seeds[name]} | " + " | ".join(row) + " |" for name, row in rows.items()]


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table of the files, and draws the arms of one split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, metavar="comparison.json")
    parser.add_argument("--split", help="test set of the figure (default: the first)")
    parser.add_argument("--figure", type=Path, help="file to draw (SVG)")
    options = parser.parse_args(words)
    comparisons = [json.loads(path.read_text()) for path in options.comparisons]
    print("\n".join(table(comparisons)))
    split = options.split or next(iter(comparisons[0]["results"]))
    if options.figure:
        from evaluation.figures import arms_figure  # matplotlib takes a second to load

        arms = {name: arm for one in comparisons for name, arm in one["results"][split]["arms"].items()}
        options.figure.write_text(arms_figure(arms))


if __name__ == "__main__":
    main()
