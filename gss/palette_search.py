"""The search for a palette: far-apart colours, then colours that survive the round trip (GSS, CVPR 2023, 3.2)."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import torch
from scipy.optimize import minimize
from tqdm import tqdm

from common.errors import InputError
from gss.dvae import DVAE
from gss.maskige import Maskige, min_distance
from gss.roundtrip import class_iou, confusion, round_trip

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
