"""Small data sets whose masks are known, as other tools keep them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.command import read_options
from importing.options import ImportOptions
from importing.run import import_data

NAMES = ("water", "forest", "road")
COLORS = ((0, 0, 255), (0, 128, 0), (200, 200, 200))
SIDE = 32


def known_mask(number: int) -> np.ndarray:
    """Three classes and a corner without label, (32, 32): another one for each number."""
    ids = np.zeros((SIDE, SIDE), np.uint8)
    ids[4 + number : 20, 8:28] = 1
    ids[12:30, 2 : 10 + number] = 2
    ids[:3, :3] = 255
    return ids


class Data:
    """Writes pictures below a folder, imports it, and reads what came out."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root / "given", root / "made"
        self.root.mkdir()

    def image(self, name: str, number: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
        """A colored noise image; its pixels."""
        values = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        return self.save(name, values)

    def save(self, name: str, values: np.ndarray, **how: object) -> np.ndarray:
        """Writes a picture."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path, **how)
        return values

    def write(self, name: str, content: object) -> Path:
        """Writes a text, or JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def imported(self, *words: object, source: Path | None = None) -> Path:
        """Imports; the folder that was made."""
        line = [str(source or self.root), "--out", str(self.out), *map(str, words)]
        self.report = import_data(read_options(ImportOptions, "", line)).report
        return self.out

    def masks(self) -> dict[str, np.ndarray]:
        """Ids of all masks that were made, by name."""
        return {path.stem: np.asarray(Image.open(path)) for path in sorted(self.out.glob("label_*/*"))}

    def classes(self) -> list[str]:
        """Names in the class table that was made."""
        return json.loads((self.out / "classes.json").read_text())["classes"]

    def lines(self, split: str = "train") -> list[dict[str, str]]:
        """Lines of a list that was made."""
        return [json.loads(line) for line in (self.out / f"{split}_set_items.json").read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """An empty folder to fill."""
    return Data(tmp_path)


def painted(ids: np.ndarray, colors: tuple[tuple[int, int, int], ...] = COLORS) -> np.ndarray:
    """A mask in colors; black where it has no label."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    return table[ids]
