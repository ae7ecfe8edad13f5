"""Draws docs/architecture.svg, the README's first figure: python docs/architecture.py [FILE]."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

TRAINED, FROZEN, DATA, LINE = "#fde3c8", "#dde6f0", "#ffffff", "#334155"
WIDTH, HEIGHT = 1120, 610


class Drawing:
    """An SVG that grows by boxes, arrows and texts; all numbers are pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, size: int = 13, anchor: str = "middle", weight: str = "normal"
    ) -> None:
        """One line, ``y`` its baseline."""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{LINE}">{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: str, fill: str = DATA, dashed: bool = False
    ) -> None:
        """A box around centered lines, the first one bold."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{LINE}"{dash}/>'
        )
        words = lines.split("\n")
        top = y + height / 2 - (len(words) - 1) * 8 + 4.5
        for i, line in enumerate(words):
            self.text(x + width / 2, top + i * 16, line, 13 if i == 0 else 11, weight="bold" if i == 0 else "normal")

    def arrow(self, *points: tuple[float, float], label: str = "", above: bool = True) -> None:
        """A line through points, its head at the last; the label stands at the middle of its first part."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#head)"/>'
        )
        if label:
            (x0, y0), (x1, y1) = points[:2]
            self.text((x0 + x1) / 2, (y0 + y1) / 2 + (-5 if above else 14), label, 11)

    def svg(self) -> str:
        """The whole file."""
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif">\n'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>\n'
            f'<rect width="{width}" height="{height}" fill="white"/>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def network(draw: Drawing) -> None:
    """One prediction: conditions on the left, branches and U-Net in the middle, what comes of it on the right."""
    draw.text(24, 30, "One denoising step", 16, "start", "bold")
    draw.box(24, 60, 130, 54, "mask\nclass ids of place A")
    draw.box(24, 140, 130, 54, "reference\nimage of place B")
    draw.box(24, 220, 130, 54, "noisy latent z_t\nand time step t")
    draw.box(24, 300, 130, 54, "text prompt\nclasses of the mask")
    draw.box(190, 60, 120, 54, "hint encoding\nindex, colors, one-hot", FROZEN)
    draw.box(190, 140, 120, 54, "first stage\nVAE encoder", FROZEN)
    draw.box(190, 300, 120, 54, "text encoder\nCLIP", FROZEN)
    draw.box(370, 60, 170, 54, "mask branch\nzero convolutions", TRAINED)
    draw.box(370, 140, 170, 54, "reference branch\nzero convolutions", TRAINED)
    draw.box(370, 220, 170, 54, "U-Net encoder\nStable Diffusion's", FROZEN)
    draw.box(
        650,
        60,
        190,
        214,
        "U-Net middle, decoder\nStable Diffusion's (frozen),\nwith all-in-attention\n(trained) in each block",
        FROZEN,
    )
    draw.box(900, 140, 90, 54, "prediction\nof the noise")
    draw.box(900, 232, 196, 42, "guidance, solver: z_(t-1)\nnoise of its own for each image")
    draw.box(900, 312, 196, 42, "VAE decoder: image\nplace A in the style of place B", FROZEN)
    draw.arrow((154, 87), (190, 87))
    draw.arrow((310, 87), (370, 87))
    draw.arrow((154, 167), (190, 167))
    draw.arrow((310, 167), (370, 167))
    draw.arrow((154, 247), (370, 247))
    draw.arrow((154, 327), (190, 327))
    draw.arrow((310, 327), (745, 327), (745, 274), label="text: to all three encoders, and the decoder", above=False)
    draw.arrow((340, 247), (340, 100), (370, 100))
    draw.arrow((340, 247), (340, 180), (370, 180))
    draw.arrow((540, 87), (650, 87), label="mask features")
    draw.arrow((540, 167), (650, 167), label="reference feat.")
    draw.arrow((540, 247), (650, 247), label="skips")
    draw.arrow((840, 167), (900, 167))
    draw.arrow((945, 194), (945, 232))
    draw.arrow((998, 274), (998, 312))


def block(draw: Drawing) -> None:
    """The all-in-attention block."""
    draw.text(24, 408, "All-in-attention (joint reference-semantic fusion): one transformer block", 16, "start", "bold")
    parts = (
        ("attention\nto reference", TRAINED),
        ("attention\nto mask", TRAINED),
        ("attention\nto itself", FROZEN),
        ("attention\nto text", FROZEN),
        ("feed-forward\nGEGLU", FROZEN),
    )
    draw.text(24, 453, "tokens", 12, "start")
    x = 92.0
    draw.arrow((66, 449), (x, 449))
    for i, (name, fill) in enumerate(parts):
        draw.box(x, 425, 116, 48, name, fill)
        end = x + 116
        draw.arrow((end, 449), (end + 26, 449))
        if i < len(parts) - 1:
            x = end + 26
    draw.text(x + 150, 453, "each part: x + f(norm(x))", 12, "start")
    draw.box(930, 396, 18, 18, "", TRAINED)
    draw.text(956, 410, "trained", 12, "start")
    draw.box(1020, 396, 18, 18, "", FROZEN)
    draw.text(1046, 410, "frozen", 12, "start")


def chain(draw: Drawing) -> None:
    """From labeled images to a better segmentor."""
    draw.text(24, 518, "The whole chain", 16, "start", "bold")
    steps = (
        ("train.sh", "reference: the image\nitself, augmented"),
        ("inference.sh", "masks x references\nx seeds"),
        ("filter.sh", "pixels whose loss is over\n1.25 x class mean: 255"),
        ("resample.sh", "weak classes, or over\n80 % of pixels kept"),
        ("segmentor train", "real and synthesized\nimages"),
        ("compare", "with and without,\nseeds, intervals"),
    )
    for i, (name, what) in enumerate(steps):
        x = 24 + i * 180
        draw.box(x, 532, 158, 62, f"{name}\n{what}")
        if i:
            draw.arrow((x - 22, 563), (x, 563))


def main() -> None:
    """Writes the figure."""
    draw = Drawing(WIDTH, HEIGHT)
    for part in (network, block, chain):
        part(draw)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    out.write_text(draw.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
