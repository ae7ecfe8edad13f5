"""Which class is taken for which: a table of pixels as a figure and as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.files import atomic_path, write_json


def write_confusion(matrix: NDArray[Any], names: list[str], stem: Path) -> tuple[Path, Path]:
    """Writes ``<stem>.json`` with pixels, and ``<stem>.svg`` with the share of each true class in percent.

    Args:
        matrix: pixels of each true class (rows) by predicted class, (C, C).
        names: C class names.
        stem: the files' path without suffix.

    Returns:
        The two files.
    """
    table, figure = (stem.with_name(stem.name + suffix) for suffix in (".json", ".svg"))
    write_json(
        {"classes": names, "rows": "true class", "columns": "predicted class", "pixels": matrix.tolist()},
        table,
        indent=None,
    )
    with rc_context({"text.parse_math": False, "svg.hashsalt": "confusion"}), atomic_path(figure) as temporary:
        FigureCanvasSVG(_figure(matrix, names)).print_svg(str(temporary), metadata={"Date": None})
    return table, figure


def _figure(matrix: NDArray[Any], names: list[str]) -> Figure:
    count = len(names)
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(100 * matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    size = 3 + 0.45 * count
    figure = Figure((size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
    shown = [name if len(name) <= 30 else f"{name[:29]}…" for name in names]
    axes.set_xticks(range(count), shown, rotation=90)
    axes.set_yticks(range(count), shown)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for row in range(count if count <= 40 else 0):  # more numbers than that nobody reads
        for column in range(count):
            if share[row, column] >= 0.5:
                axes.text(
                    column,
                    row,
                    f"{share[row, column]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[row, column] > 50 else "black",
                )
    figure.colorbar(image, label="% of the true class's pixels", shrink=0.8)
    return figure
