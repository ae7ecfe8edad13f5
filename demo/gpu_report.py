"""The table of what demo/on_a_gpu.sh has measured, and the section of a page that holds it.

python -m demo.gpu_report OUT [--page docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import proof_table

HEADING = "## On a GPU"
TRAINING = (
    "latents and texts given",
    "optimizer not fused",
    "encoder within autograd",
    "use_checkpoint",
    "not channels-last",
)
# Rows of a benchmark: what is said of a result, if it is there.
ROWS: dict[str, Callable[[Any], str]] = {
    "`create_model`, s": lambda one: f"{one['create_model_seconds']:.1f}",
    "a guided step, s": lambda one: f"{one['seconds_per_step']:.4f}",
    "the same within `sample`, s": lambda one: f"{one['sample_seconds_per_step']:.4f}",
    "GFLOP a step": lambda one: f"{one['flops_per_step'] / 1e9:.0f}",
    "share of the matrix-product rate": lambda one: f"{one['share_of_matmul_rate']:.0%}",
    "images a second (steps)": lambda one: f"{one['images_per_second']:.3f} ({one['steps_per_image']})",
    "by `--preset published`": lambda one: f"{one['preset_images_per_second']['published']:.3f}",
    "by `--preset whole`": lambda one: f"{one['preset_images_per_second']['whole']:.3f}",
    "by `--preset balanced`": lambda one: f"{one['preset_images_per_second']['balanced']:.3f}",
    "by `--preset fast`": lambda one: f"{one['preset_images_per_second']['fast']:.3f}",
    "training samples a second": lambda one: f"{one['training_samples_per_second']:.3f}",
    "a training step by `p_losses`, s": lambda one: f"{one['p_losses_seconds']:.4f}",
    "peak memory of synthesis, GiB": lambda one: f"{one['peaks_gib']['synthesis']:.2f}",
    "peak memory of training, GiB": lambda one: f"{one['peaks_gib']['training']:.2f}",
    "peer's time / this project's": lambda one: f"{one['peer']['time_ratio']:.2f}",
    "the same, hints once": lambda one: f"{one['peer']['hints_once']['time_ratio']:.2f}",
    "text and hints anew each step": lambda one: f"{one['ablations']['text and hints anew each step']:.2f}",
    "one text after the other": lambda one: f"{one['ablations']['one text after the other']:.2f}",
    "attention not fused": lambda one: f"{one['ablations']['attention not fused']:.2f}",
    "not channels-last": lambda one: f"{one['ablations']['not channels-last']:.2f}",
}


def _trained(name: str) -> Callable[[Any], str]:
    return lambda one: f"{one['training_ablations'][name]:.2f}"


ROWS |= {f"training, {name}": _trained(name) for name in TRAINING}
for _kind in ("blocks", "whole", "graphs"):
    ROWS |= {
        f"`--compile {_kind}`: s until the first step": lambda one, kind=_kind: (
            f"{one['compiled'][kind]['start_seconds']:.0f}"
        ),
        f"uncompiled, of `--compile {_kind}`": lambda one, kind=_kind: f"{one['compiled'][kind]['time_ratio']:.2f}",
    }


def read(folder: Path, kind: str) -> dict[str, Any]:
    """Results of one kind of parts by what follows it in their names: what was measured, done or not."""
    files = folder.glob(f"{kind}*.json")
    return {path.stem.removeprefix(kind): json.loads(path.read_text()) for path in sorted(files)}


def cell(say: Callable[[Any], str], result: Any) -> str:
    """What a row says of a result; nothing of what was not measured."""
    try:
        return say(result)
    except KeyError:
        return ""


def table(folder: Path) -> list[str]:
    """Lines of one Markdown table: columns are precisions, then batches."""
    of_precision = read(folder, "bench_")
    of_batch = {int(batch): one for batch, one in read(folder, "batch_").items()}
    columns = {(precision, 1): one for precision, one in of_precision.items()}
    columns |= {(one["precision"], batch): one for batch, one in sorted(of_batch.items())}
    if not columns:
        return ["No benchmark was measured."]
    heads = [precision if batch == 1 else f"{precision}, batch {batch}" for precision, batch in columns]
    whole = [{**one, **of_precision.get(p, {})} if b == 1 else one for (p, b), one in columns.items()]
    lines = ["| | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for name, say in ROWS.items():
        cells = [cell(say, one) for one in whole]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    parity = read(folder, "parity").get("", {"precisions": {}})["precisions"]
    if parity:
        of_32 = {precision.removesuffix(", TF32"): f"{found['prediction']:.2%}" for precision, found in parity.items()}
        cells = [of_32.get(precision, "") if batch == 1 else "" for precision, batch in columns]
        lines.append("| a prediction's difference from 32 bit | " + " | ".join(cells) + " |")
    return lines


def report(folder: Path, today: str) -> list[str]:
    """The section's lines."""
    results = [*read(folder, "bench_").values(), *read(folder, "batch_").values()]
    settings = (folder / "settings").read_text().strip()
    device = f"{results[0]['device']}, torch {results[0]['torch']}" if results else "no device"
    lines = [HEADING, "", f"{today}, {device}: `bash demo/on_a_gpu.sh`, with `{settings}`.", "", *table(folder), ""]
    if (folder / "memory.log").exists():  # rows are written one by one
        rows = [line for line in (folder / "memory.log").read_text().splitlines() if line.startswith("|")]
        told = "Memory in GiB, counted, and measured where there is a GPU (docs/memory.md says of what):"
        lines += [told, "", *rows, ""]
    if (folder / "tests.done").exists():
        log = (folder / "tests.log").read_text().splitlines()
        said = [line for line in log if re.search(r"\d+ (passed|skipped)", line)]
        lines += [f"Tests: {said[-1].strip('= ') if said else 'passed'}.", ""]
    for path in sorted(folder.glob("proof/comparison*/comparison.json")):
        lines += _compared(path, "docs/proof.md")
    for path in folder.glob("proof/loop/improve.json"):
        loop = json.loads(path.read_text())
        scores = ", ".join(f"{100 * one['mIoU']:.1f}" for one in loop["rounds"])
        lines += [f"The closed loop: round {loop['best']} is the best, mIoU on held-out scenes by round: {scores}.", ""]
    for path in folder.glob("proof/loop/comparison/comparison.json"):
        lines += _compared(path, "of the loop, trained on fewer scenes")
    for path in sorted(folder.glob("*.failed")):
        lines += [f"* {path.stem} failed: {path.read_text().strip()}"]
    return lines


def _compared(path: Path, what: str) -> list[str]:
    """A comparison's title and table."""
    comparison = json.loads(path.read_text())
    return [f"{comparison['title']} ({what}; mIoU in points):", "", *proof_table.table([comparison]), ""]


def replace_section(page: str, section: list[str]) -> str:
    """The page with another section in the place of its own of this heading, or at its end."""
    start = page.find(HEADING)
    if start < 0:
        return page.rstrip() + "\n\n" + "\n".join(section).rstrip() + "\n"
    end = page.find("\n## ", start + 1)
    rest = page[end:] if end >= 0 else "\n"
    return page[:start] + "\n".join(section).rstrip() + "\n" + rest.rstrip("\n") + ("\n" if rest.strip() else "")


def main(words: list[str] | None = None) -> None:
    """Prints the section; with a page, writes it there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(words)
    section = report(options.folder, datetime.date.today().isoformat())
    print("\n".join(section))
    if options.page is not None:
        options.page.write_text(replace_section(options.page.read_text(), section))


if __name__ == "__main__":
    main()
