"""What a comparison of several arms says, in words and tables of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluation.comparison import holm

Arms = Mapping[str, Mapping[str, Any]]  # by name, see ``comparison_page.write_comparison``
FATES = {"better": "Helps", "worse": "Harms", "unclear": "No clear effect"}
POINTS = {"amount": "{:g} for each real image", "share": "{:.0%} of the real images"}


def percent(value: float | None, sign: bool = False) -> str:
    """0.5 -> ``50.00``; None -> a dash."""
    return "–" if value is None else f"{100 * value:{'+' if sign else ''}.2f}"


def _difference(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    difference: Mapping[str, Any] = entry["scores"]["mIoU"]["difference"]
    return difference


def interval(difference: Mapping[str, Any]) -> str:
    """``+1.20 … +3.40``; a dash for a single seed."""
    if difference["low"] is None:
        return "–"
    return f"{percent(difference['low'], True)} … {percent(difference['high'], True)}"


def p_value(value: float | None) -> str:
    """``0.012``; ``below 0.001``; None -> a dash."""
    return "–" if value is None else "below 0.001" if value < 0.001 else f"{value:.3f}"


def headline(split: str, arms: Arms, best: Mapping[str, Any] | None = None) -> list[str]:
    """What a reader wants to know of several arms: which help, by how much, and whether more than the free tricks.

    Args:
        split: the test set's name.
        arms: by name.
        best: the best free trick and the best arm with synthesized images, see ``comparison_page.write_comparison``.

    Returns:
        HTML paragraphs.
    """
    ordered = sorted(arms, key=lambda name: -_difference(arms[name])["mean"])
    seeds = next(iter(arms.values()))["scores"]["mIoU"]["seeds"]
    paragraphs = [
        f"<h3>On {escape(split)}, against real images alone ({seeds} seeds, mIoU in points)</h3>",
    ]
    for fate, words in FATES.items():
        named = [_arm_in_words(name, arms[name]) for name in ordered if arms[name]["verdict"] == fate]
        if named or fate == "better":
            paragraphs.append(f'<p class="verdict {fate}"><b>{words}:</b> {escape("; ".join(named) or "none")}.</p>')
    if best:
        by = f"{percent(best['difference']['mean'], True)} points (95 % interval {interval(best['difference'])})"
        text = (
            f"The best arm with synthesized images, {best['painted']}, differs from the best free trick, "
            f"{best['free']}, by {by}; both are chosen by these very scores."
        )
        paragraphs.append(f"<p>{escape(text)}</p>")
    return paragraphs


def _arm_in_words(name: str, arm: Mapping[str, Any]) -> str:
    difference = _difference(arm)
    text = f"{name} {percent(difference['mean'], True)}"
    if difference["low"] is None:
        return f"{text} (a single seed says nothing about chance)"
    return f"{text} (95 % interval {interval(difference)}, corrected p {p_value(arm['p_holm'])})"


def arms_table(arms: Arms) -> str:
    """One row an arm: what it took, mIoU, difference, interval, p-values."""
    heads = ("arm", "iterations", "mIoU (%)", "difference", "95 % interval", "p", "p (Holm)")
    first = next(iter(arms.values()))["scores"]["mIoU"]["baseline"]
    rows = [f"<tr><td>real</td><td></td><td>{_mean(first)}</td><td></td><td></td><td></td><td></td></tr>"]
    for name, arm in arms.items():
        difference = _difference(arm)
        cells = (
            str(arm["iterations"] or "–"),
            _mean(arm["scores"]["mIoU"]["joint"]),
            f'<span class="{arm["verdict"]}">{percent(difference["mean"], True)}</span>',
            interval(difference),
            p_value(difference["p"]),
            p_value(arm["p_holm"]),
        )
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{text}</th>" for text in heads)
    note = (
        "Iterations of all of an arm's trainings; self-training's teacher is the real arm's. p: paired t-test; Holm's: "
        f"corrected for {len(arms)} comparisons on this test set; an effect counts as clear where that is below 0.05."
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table><small>{note}</small>"


def _mean(value: Mapping[str, float | None]) -> str:
    return percent(value["mean"]) + ("" if value["sd"] is None else f" ± {percent(value['sd'])}")


def curve_sentence(split: str, varied: str, points: Sequence[Mapping[str, Any]]) -> str:
    """A curve in words: the difference at each of its points."""
    told = [
        f"{POINTS[varied].format(point['value'])}: {percent(point['difference']['mean'], True)} "
        f"({interval(point['difference'])})"
        for point in points
    ]
    what = "By the number of synthesized images" if varied == "amount" else "By the part of the real images"
    return f"{what}, on {split}, joint minus real in points of mIoU (95 % interval): {'; '.join(told)}."


def curve_table(varied: str, points: Sequence[Mapping[str, Any]]) -> str:
    """One row a point: mIoU of both, difference, interval, p-values."""
    corrected = holm([point["difference"]["p"] for point in points])
    rows = []
    for point, p in zip(points, corrected, strict=True):
        difference = point["difference"]
        cells = (
            _mean(point["baseline"]),
            _mean(point["joint"]),
            percent(difference["mean"], True),
            interval(difference),
            p_value(difference["p"]),
            p_value(p),
        )
        label = POINTS[varied].format(point["value"])
        rows.append(f"<tr><td>{escape(label)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("mIoU (%)", "real", "joint", "difference", "95 % interval", "p", f"p (Holm, {len(points)} points)")
    return f"<table><tr>{''.join(f'<th>{text}</th>' for text in heads)}</tr>{''.join(rows)}</table>"
