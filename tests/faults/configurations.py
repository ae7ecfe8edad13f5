"""Mutated configurations, as a model's YAML and as a training's: what commands make of them.

    python -m tests.faults.configurations --mutations 1000 --seed 3

prints how many were accepted and refused, and each that ended otherwise. One process does it all.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.faults.mutate import Ending, command, mutate_text, mutate_tree, observe, paths_of, value_at

MODELS = [*sorted((ROOT / "configs" / "model").glob("*.yaml")), ROOT / "tests" / "small.yaml"]


def write_tree(tree: Any, path: Path) -> None:
    """A tree as YAML, with what YAML can hold."""
    try:
        text = yaml.safe_dump(tree, allow_unicode=True)
    except RecursionError:
        text = json.dumps(tree)  # which is YAML, too
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def build(path: Path) -> Callable[[], None]:
    """Checks and outlines a model as commands do first, without memory for its weights."""

    def call() -> None:
        from cldm.build import load_config, outline
        from common.command import run

        run(lambda: outline(load_config(path), str(path)) and None)

    return call


def mutated_models(folder: Path, rng: random.Random) -> Iterator[tuple[str, Ending]]:
    """Endless: a model's file changed in its values or its text, and how its outline ended."""
    while True:
        good = rng.choice(MODELS)
        path = folder / "model.yaml"
        if rng.random() < 0.3:
            what, content = mutate_text(good.read_text(), rng)
            path.write_bytes(content)
        else:
            what, tree = mutate_tree(yaml.safe_load(good.read_text())["model"], rng)
            write_tree({"model": tree}, path)
        yield f"{good.name}: {what}", observe(build(path), seconds=20)


def mutated_trainings(folder: Path, scenes: Path, rng: random.Random) -> Iterator[tuple[str, Ending]]:
    """Endless: a training's file or one setting on its command line changed, and how its dry run ended."""
    model = ROOT / "tests" / "small.yaml"
    good = yaml.safe_load(model.read_text())
    places = [path for path in paths_of(good) if path]
    options = (
        "-n",
        "run",
        "-l",
        folder,
        "--gpus",
        "cpu",
        "--data-root",
        scenes,
        "--train-txt-file",
        scenes / "train_set_items.json",
        "--val-txt-file",
        scenes / "test_set_items.json",
        f"model.params.classes={scenes}/classes.json",
        "--dry-run",
    )
    while True:
        base, settings = folder / "train.yaml", []
        if rng.random() < 0.25:
            what, content = mutate_text(model.read_text(), rng)
            base.write_bytes(content)
        elif rng.random() < 0.3:
            place = rng.choice(places)
            what, value = mutate_tree(value_at(good, place), rng)
            settings = [f"{'.'.join(map(str, place))}={as_text(value)}"]
            what = f"setting {settings[0]!r:.80}"
            write_tree(good, base)
        else:
            part = rng.choice(("data", "lightning", "base_learning_rate", "all"))
            what, tree = mutate_tree(good if part == "all" else good[part], rng)
            write_tree(tree if part == "all" else {**good, part: tree}, base)
            what = f"{part}: {what}"
        yield what, observe(command("train", "--base", base, "--config-model", base, *options, *settings), seconds=30)


def as_text(value: Any) -> str:
    """A value as it would be written behind ``key=``."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def main() -> int:
    """Runs both kinds and reports."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mutations", type=int, default=300, help="of each kind")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--accepted", action="store_true", help="print what was accepted, too")
    args = options.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = [sys.executable, ROOT / "demo" / "make_data.py", "--out", folder / "scenes", "--size", "32"]
        subprocess.run([*make, "--train", "4", "--test", "2", "--references", "2"], check=True, capture_output=True)
        rng = random.Random(args.seed)
        for kind, endings in (
            ("model", mutated_models(folder, rng)),
            ("training", mutated_trainings(folder, folder / "scenes", rng)),
        ):
            counts: Counter[str] = Counter()
            for _ in range(args.mutations):
                what, ending = next(endings)
                counts[ending.kind] += 1
                if not ending.fine:
                    print(f"{kind}: {ending.kind}: {what}\n    {ending.text[-700:]}", flush=True)
                elif ending.kind == "accepted" and args.accepted:
                    print(f"{kind}: accepted: {what}", flush=True)
            print(kind, dict(counts), flush=True)
            bad += sum(n for ending, n in counts.items() if ending not in ("accepted", "refused"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
