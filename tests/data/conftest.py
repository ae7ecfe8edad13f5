import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Path]:
    """Writes ``n`` items of random masks (classes 0..4 and 255), images and references, and their list."""

    def make(root: Path, n: int, side: int = 64) -> Path:
        rng = np.random.default_rng(0)
        for folder in ("label", "img", "ref"):
            (root / folder).mkdir(parents=True)
        lines = []
        for i in range(n):
            mask = rng.choice(np.array([0, 1, 2, 3, 4, 255], dtype=np.uint8), (side, side))
            Image.fromarray(mask).save(root / f"label/m{i}.png")
            for folder in ("img", "ref"):
                blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
                Image.fromarray(blocks).save(root / f"{folder}/m{i}.jpg")
            lines.append(_line(i))
        (root / "train.json").write_text("\n".join(lines) + "\n")
        return root

    return make


@pytest.fixture
def data(tmp_path: Path, make_data: Callable[..., Path]) -> Path:
    """A data root with four items."""
    return make_data(tmp_path / "data", 4)


@pytest.fixture(scope="session")
def line() -> Callable[..., str]:
    """Makes the list line of item ``i``; a change to None drops the field."""
    return _line


def _line(i: int, **changes: Any) -> str:
    content = {"source": f"label/m{i}.png", "target": f"img/m{i}.jpg", "prompt": f"p{i}", "ref_image": f"ref/m{i}.jpg"}
    return json.dumps({k: v for k, v in {**content, **changes}.items() if v is not None})
