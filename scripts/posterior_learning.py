"""Learns a palette: far-apart colours for classes (posterior learning, GSS, CVPR 2023, section 3.2)."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from tqdm import tqdm

from common.classes import load_class_table
from common.errors import InputError
from common.files import atomic_path, check_writable
from common.images import IGNORE, Labels
from common.pairing import MASK_SUFFIXES, list_files
from gss.dvae import DVAE
from gss.maskige import PALETTE_FOLDER, Maskige, farthest_colour, load_palette, min_distance
from gss.roundtrip import class_iou, confusion, round_trip
from scripts import cli
from scripts.cli import integer, number
from scripts.pairs import pick_device

PICTURES = (".png", ".jpg", ".svg", ".pdf")

DESCRIPTION = """Learns a palette for N classes and one colour more for ignored pixels.

  python -m scripts.posterior_learning --dataset ade20k --out gss/palettes/ade20k.json --picture ade20k.png
  python -m scripts.posterior_learning --classes classes.json --d-vae dvae.safetensors --masks label_train --out my.json

Method `spread` maximises the smallest distance between two colours; `grid` is the published colour grid with jitter.
With --d-vae, classes that the round trip mask -> tokens -> mask confuses then change colours until that stops helping.
The result is a class table (classes, palette, ignore_index) with the field ignore_color."""

# Published grids: levels (first, step, count) of red, green and blue, jitter, and how many cells are left out at first.
GRIDS: dict[str, tuple[tuple[tuple[int, int, int], ...], tuple[int, int], int]] = {
    "ade20k": (((15, 51, 5), (16, 40, 6), (17, 45, 5)), (-15, 15), 0),
    "mseg": (((15, 55, 5), (16, 51, 5), (17, 33, 8)), (-15, 0), 6),
}


def grid_palette(num_classes: int, seed: int, dataset: str | None = None) -> np.ndarray:
    """The published method: cells of a regular RGB grid, in order, each with a uniform jitter.

    Args:
        num_classes: N; the data set's, where one is named.
        seed: of the jitter (Python's generator, as published).
        dataset: a key of ``GRIDS`` for its published grid; else the most even grid with at least N cells.

    Returns:
        (N, 3) int64.
    """
    if dataset in GRIDS:
        levels, jitter, skipped = GRIDS[dataset]
        axes = [[first + step * i for i in range(count)] for first, step, count in levels]
    else:
        side = 1
        while side**3 < num_classes:
            side += 1
        counts = [side, side, next(k for k in range(1, side + 1) if side * side * k >= num_classes)]
        axes = [[round(15 + 225 * i / max(k - 1, 1)) for i in range(k)] for k in counts]
        reach = min(15, 225 // (2 * max(side - 1, 1)) - 1)
        jitter, skipped = (-reach, reach), 0
    draw = random.Random(seed)
    cells = [[level + draw.randint(*jitter) for level in cell] for cell in product(*axes)]
    return np.array(cells[skipped : skipped + num_classes], dtype=np.int64)


def spread_palette(count: int, seed: int, restarts: int = 4) -> np.ndarray:
    """Colours whose smallest distance is as large as can be found: points that repel each other in the RGB cube.

    Minimises (sum over pairs of d^-p)^(1/p) for growing p, which tends to 1 / (smallest distance); started from the
    densest packing, a face-centred cubic lattice, and from random points.

    Args:
        count: number of colours M.
        seed: of the starts.
        restarts: number of starts.

    Returns:
        (M, 3) int64, 0..255, in random order.
    """
    rng = np.random.default_rng(seed)
    best: np.ndarray = np.zeros((count, 3), dtype=np.int64)
    for start in range(restarts):
        points = rng.random((count, 3)) if start % 2 else _lattice(count, rng)
        for p in (8, 32, 128, 512):
            scale = max(min_distance_of(points), 1e-3)
            solution = minimize(
                _repulsion, points.ravel(), (p, scale), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * points.size,
                options={"maxiter": 80},
            )  # fmt: skip
            points = solution.x.reshape(-1, 3)
        rounded = (255 * points).round().astype(np.int64)
        if start == 0 or min_distance(rounded) > min_distance(best):
            best = rounded
    return rng.permutation(best)


def min_distance_of(points: np.ndarray) -> float:
    """Smallest distance between two of the points (M, 3), any unit."""
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    return float(np.sqrt(squared.min()))


def _repulsion(flat: np.ndarray, p: int, scale: float) -> tuple[float, np.ndarray]:
    """log of the energy's p-th root, and its gradient; ``scale`` keeps the powers within range."""
    points = flat.reshape(-1, 3)
    difference = points[:, None] - points[None]  # (M, M, 3)
    squared = np.maximum((difference**2).sum(-1), (scale / 4) ** 2)
    np.fill_diagonal(squared, np.inf)
    with np.errstate(divide="ignore"):  # a point and itself: log 0, and power 0
        power = np.exp(p * np.minimum(0.5 * np.log(scale**2 / squared), 600 / p))
    energy = power.sum()
    gradient = -2 * ((power / squared)[..., None] * difference).sum(1) / energy
    return float(np.log(energy) / p), gradient.ravel()


def _lattice(count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` points in the unit cube of the widest face-centred cubic lattice, at the best of some offsets."""
    corner = np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
    for side in np.geomspace(2, 0.1, 200):
        cells = np.array(list(product(range(-1, int(1 / side) + 2), repeat=3)))
        lattice = side * (cells[:, None] + corner).reshape(-1, 3)
        for offset in (np.zeros(3), *(side * rng.random((8, 3)))):
            inside = lattice + offset
            inside = inside[((inside > -1e-9) & (inside < 1 + 1e-9)).all(1)]
            if len(inside) >= count:
                return rng.permutation(inside)[:count].clip(0, 1)
    raise InputError(f"--num-classes: {count - 1} classes are too many for colours that differ")


def voronoi_masks(num_classes: int, count: int, size: int, seed: int) -> list[torch.Tensor]:
    """Masks of random polygons, (size, size) each, in which all classes occur equally often."""
    rng = np.random.default_rng(seed)
    per_mask = max(12, -(-2 * num_classes // count))
    ids = np.concatenate([rng.permutation(num_classes) for _ in range(-(-per_mask * count // num_classes))])
    rows, columns = np.mgrid[:size, :size]
    masks = []
    for i in range(count):
        sites = rng.random((per_mask, 2)) * size
        nearest = ((rows[..., None] - sites[:, 0]) ** 2 + (columns[..., None] - sites[:, 1]) ** 2).argmin(-1)
        masks.append(torch.from_numpy(ids[i * per_mask :][:per_mask][nearest]))
    return masks


class RoundTrip:
    """The round trip's quality on fixed masks: through a dVAE, or, without one, through Gaussian noise (std 20)."""

    def __init__(self, masks: list[torch.Tensor], dvae: DVAE | None, scale: int, device: str) -> None:
        self.masks, self.dvae, self.scale, self.device = [m.to(device) for m in masks], dvae, scale, device

    def __call__(self, palette: np.ndarray, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels (H, W) and colours (3, H', W'), 0..255, after the trip."""
        maskige = Maskige(palette)
        if self.dvae is not None:
            labels, colours = round_trip(mask[None], maskige, self.dvae, self.scale)
        else:
            clean = maskige.encode(mask[None]).float()
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
            colours = (clean + 20 * noise).clamp(0, 255)
            labels = maskige.decode(colours)
        return labels[0], colours[0]

    def matrix(self, palette: np.ndarray) -> torch.Tensor:
        """Confusion matrix over all masks."""
        return confusion(((mask, self(palette, mask)[0]) for mask in self.masks), len(palette) - 1)

    def mean_iou(self, palette: np.ndarray) -> float:
        """mIoU over all masks."""
        return float(class_iou(self.matrix(palette)).nanmean())


def refine(palette: np.ndarray, trip: RoundTrip, seed: int, rounds: int, tries: int, keep: float) -> np.ndarray:
    """Gives confused classes other colours while the round trip's mIoU rises.

    In each round the classes are visited from the lowest IoU on; a class tries to swap its colour with the class it is
    most confused with and with random ones, and to move to free colours. The search ends after a round without gain.

    Args:
        palette: (N + 1, 3), the start.
        trip: what to improve.
        seed: of the tries.
        rounds: rounds at most.
        tries: colours tried a class and round.
        keep: share of the start's smallest distance that has to remain.

    Returns:
        (N + 1, 3).
    """
    rng, floor, best = np.random.default_rng(seed), keep * min_distance(palette), trip.mean_iou(palette)
    count = len(palette) - 1
    for turn in range(rounds):
        matrix = trip.matrix(palette)
        order = np.argsort(class_iou(matrix).nan_to_num(2).numpy())
        errors = matrix.numpy() * (1 - np.eye(count, dtype=np.int64))
        before = best
        bar = tqdm(order, desc=f"round {turn + 1}, mIoU {best:.4f}")
        for c in bar:
            candidates = []
            partners = [int((errors[c] + errors[:, c]).argmax()), *rng.integers(0, count, tries // 2)]
            for other in {int(p) for p in partners} - {int(c)}:
                swapped = palette.copy()
                swapped[[c, other]] = swapped[[other, c]]
                candidates.append(swapped)
            for colour in rng.integers(0, 256, (64, 3)):
                moved = palette.copy()
                moved[c] = colour
                if len(candidates) < tries and min_distance(moved) >= floor:
                    candidates.append(moved)
            scores = [trip.mean_iou(candidate) for candidate in candidates]
            if scores and max(scores) > best + 1e-6:
                best = max(scores)
                palette = candidates[int(np.argmax(scores))]
                bar.set_description(f"round {turn + 1}, mIoU {best:.4f}")
        if best <= before + 1e-4:
            break
    return palette


def draw(path: Path, palette: np.ndarray, names: list[str], trip: RoundTrip) -> None:
    """A picture: the colours with their ids, and a mask before and after the round trip."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(10 if len(names) <= 20 else 20, len(palette))
    rows = -(-len(palette) // columns)
    figure, axes = plt.subplots(2, 1, figsize=(12, 4.5 + 0.45 * rows), height_ratios=[rows * 0.45, 4])
    swatches = np.full((rows * columns, 3), 255)
    swatches[: len(palette)] = palette
    axes[0].imshow(swatches.reshape(rows, columns, 3).astype(np.uint8), aspect="auto")
    for i, colour in enumerate(palette):
        text = "ignore" if i == len(names) else names[i].replace(" ", "\n") if len(names) <= 20 else str(i)
        ink = "black" if colour @ [0.3, 0.59, 0.11] > 110 else "white"
        axes[0].text(i % columns, i // columns, text, ha="center", va="center", color=ink, fontsize=6)
    axes[0].set_title(f"{len(names)} classes, smallest distance {min_distance(palette):.1f}")
    mask = trip.masks[0]
    found, colours = trip(palette, mask)
    first = Maskige(palette).encode(mask[None])[0]
    wrong = ((found != mask) & (mask < len(names))).cpu()
    images = [first.movedim(0, -1).cpu(), colours.round().byte().movedim(0, -1).cpu(), ~wrong]
    for i, (image, title) in enumerate(zip(images, ("maskige", "after the round trip", "wrong pixels"), strict=True)):
        inset = axes[1].inset_axes((i / 3 + 0.01, 0, 0.31, 0.95))
        inset.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        inset.set_title(f"{title}: {wrong.float().mean():.2%}" if i == 2 else title, fontsize=9)
        inset.axis("off")
    axes[0].set(xticks=[], yticks=[])
    axes[1].axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", format=path.suffix[1:] or "png")
    plt.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("--num-classes", type=int, default=None, help="N (default: the data set's or class table's)")
    parser.add_argument(
        "--dataset", default=None, help="cityscapes, ade20k or mseg: compares with its published colours"
    )
    parser.add_argument("--classes", default=None, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    parser.add_argument("--method", choices=("spread", "grid"), default="spread", help="how colours are chosen")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of all random choices")
    parser.add_argument("--restarts", type=integer(1), default=4, help="starts of the search for far-apart colours")
    parser.add_argument("--d-vae", default=None, help="dVAE weights, or a GSS checkpoint: improves the round trip")
    parser.add_argument("--masks", default=None, help="folder of index masks for the round trip (default: polygons)")
    parser.add_argument("--max-masks", type=integer(1), default=16, help="masks used for the round trip")
    parser.add_argument("--scale", type=integer(1), default=2, help="enlargement of masks for the dVAE; heads use 2")
    parser.add_argument("--rounds", type=integer(0), default=10, help="rounds of improvement at most")
    parser.add_argument("--tries", type=integer(1), default=6, help="colours tried a class and round")
    parser.add_argument("--keep-distance", type=number(0, 1), default=0.7, help="share of the least distance to keep")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default=None, help="palette file to write (default: print only)")
    parser.add_argument("--picture", default=None, help="picture to write: the palette and a round trip")
    return parser.parse_args(argv)


def class_names(args: argparse.Namespace) -> tuple[list[str], int]:
    """Names of the N classes, from the data set, the class table, or their numbers; the masks' id to ignore.

    Raises:
        InputError: N is unknown, contradicts the names, or is not in 2..255.
    """
    names, ignore = None, IGNORE
    if args.dataset:
        published = PALETTE_FOLDER / f"published_{args.dataset}.json"
        if not published.is_file():
            known = ", ".join(
                sorted(p.stem.removeprefix("published_") for p in PALETTE_FOLDER.glob("published_*.json"))
            )
            raise InputError(f"--dataset {args.dataset}: none of {known}; give --num-classes or --classes instead")
        names = json.loads(published.read_text())["classes"]
    elif args.classes:
        table = load_class_table(args.classes)
        names, ignore = list(table.names), table.ignore_index
    if names is None and args.num_classes is None:
        raise InputError("--num-classes: give it, or --dataset, or --classes")
    names = names or [str(i) for i in range(args.num_classes)]
    if args.num_classes not in (None, len(names)):
        raise InputError(f"--num-classes {args.num_classes}: {args.dataset or args.classes} has {len(names)} classes")
    if not 2 <= len(names) <= 255:
        raise InputError(f"--num-classes {len(names)}: must be in 2..255, the ids that a mask can hold beside ignore")
    return [str(name) for name in names], ignore


def read_masks(folder: str, count: int, labels: Labels) -> list[torch.Tensor]:
    """The first ``count`` masks of a folder, evenly spaced by name.

    Raises:
        InputError: no masks, unreadable ones, or ids that are no classes.
    """
    paths = list(list_files(Path(folder), MASK_SUFFIXES, "--masks").values())
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))
    masks = [labels.read(paths[i]) for i in chosen]
    if all((mask == IGNORE).all() for mask in masks):
        raise InputError(f"--masks {folder}: no mask shows a class, all pixels are to be ignored")
    return [torch.from_numpy(mask.astype(np.int64)) for mask in masks]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    args.device = pick_device(args.device)
    names, ignore = class_names(args)
    for option, path in (("--out", args.out), ("--picture", args.picture)):
        if path:
            check_writable(Path(path).parent, option)
    if args.picture and Path(args.picture).suffix not in PICTURES:
        raise InputError(f"--picture {args.picture}: name a file with one of {', '.join(PICTURES)}")
    masks = (
        read_masks(args.masks, args.max_masks, Labels(len(names), ignore))
        if args.masks
        else voronoi_masks(len(names), args.max_masks, 128, args.seed)
    )
    dvae = DVAE(args.d_vae).to(args.device) if args.d_vae else None
    trip = RoundTrip(masks, dvae, args.scale, args.device)

    if args.method == "grid":
        colours = grid_palette(len(names), args.seed, args.dataset)
        palette = np.concatenate([colours, farthest_colour(colours)[None]])
    else:
        palette = spread_palette(len(names) + 1, args.seed, args.restarts)
    rows = [(f"{args.method}, seed {args.seed}", palette)]
    if dvae is not None and args.rounds:
        palette = refine(palette, trip, args.seed, args.rounds, args.tries, args.keep_distance)
        rows.append(("improved by the round trip", palette))
    if args.dataset:
        rows.append((f"published {args.dataset}", load_palette(f"published_{args.dataset}")))
    means = "round trip mIoU " + ("through the dVAE" if dvae else "through noise of std 20")
    report: dict[str, Any] = {}
    for title, row in rows:
        distance, miou = min_distance(row[:-1]), trip.mean_iou(row)
        report[title] = {"min_distance": distance, "round_trip_miou": miou}
        print(f"{title:32} smallest distance {distance:6.2f}  {means} {miou:.4f}")
    if dvae is not None:
        for name, iou in zip(names, class_iou(trip.matrix(palette)).tolist(), strict=True):
            print(f"  {name:32} IoU {iou:.4f}")
    if args.out:
        table = {
            "classes": names,
            "palette": palette[:-1].tolist(),
            "ignore_index": ignore,
            "ignore_color": palette[-1].tolist(),
            "method": args.method,
            "seed": args.seed,
            "report": report,
        }
        with atomic_path(args.out) as temporary:
            temporary.write_text(json.dumps(table) + "\n")
    if args.picture:
        draw(Path(args.picture), palette, names, trip)


if __name__ == "__main__":
    cli.run(main)
