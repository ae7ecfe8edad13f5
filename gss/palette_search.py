"""The search for the colors of X: far apart, then such that survive the round trip (GSS, CVPR 2023, section 3.2)."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from common.rng import Stream, seed_from
from gss.palette import min_distance
from gss.roundtrip import RoundTrip, class_iou

# Published grids: levels (first, step, count) of red, green and blue, jitter, and how many cells are left out at first.
GRIDS: dict[str, tuple[tuple[tuple[int, int, int], ...], tuple[int, int], int]] = {
    "ade20k": (((15, 51, 5), (16, 40, 6), (17, 45, 5)), (-15, 15), 0),
    "mseg": (((15, 55, 5), (16, 51, 5), (17, 33, 8)), (-15, 0), 6),
}


def grid_palette(num_classes: int, seed: int, dataset: str | None = None) -> NDArray[Any]:
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


_LEVEL = 256  # steps of a color level, in which points are moved
_TOP = 255 * _LEVEL
_BITS = 20  # of the share of the nearest pair's force that a pair has
_STAGES = ((3, 10, 150), (5, 4, 150), (7, 1, 150))  # squarings of the power, widest move in levels, rounds


def spread_palette(count: int, seed: int, restarts: int = 16) -> NDArray[Any]:
    """Colors whose smallest distance is as large as can be found: points that repel each other in the RGB cube.

    The force between two points is a growing power of 1 / (squared distance), so that in the end the nearest ones alone
    count; the starts are the densest packing, a face-centered cubic lattice, and random points. All of it is integer
    arithmetic, whose result is the same on every machine.

    Args:
        count: number of colors M, 2..256.
        seed: of the starts.
        restarts: number of starts.

    Returns:
        (M, 3) int64, 0..255, in random order.
    """
    best: NDArray[Any] | None = None
    for start in range(restarts):
        draw = random.Random(seed_from(seed, Stream.PALETTE_START, start))
        points = _random_points(count, draw) if start % 2 else _lattice(count, draw)
        found = _polish((_repel(points) + _LEVEL // 2) // _LEVEL)
        if best is None or min_distance(found) > min_distance(best):
            best = found
    assert best is not None
    return best[_order(count, random.Random(seed_from(seed, Stream.PALETTE_ORDER)))]


def _below(stop: int, draw: random.Random) -> int:
    """A number in 0..stop - 1, from the one method whose numbers Python promises to keep."""
    return int(draw.random() * stop)


def _order(count: int, draw: random.Random) -> list[int]:
    keys = [draw.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def _random_points(count: int, draw: random.Random) -> NDArray[Any]:
    return np.array([[_below(_TOP + 1, draw) for _ in range(3)] for _ in range(count)], dtype=np.int64)


def _repel(points: NDArray[Any]) -> NDArray[Any]:
    """Moves points (M, 3), 0.._TOP, away from each other; ever less, and with ever more weight on the nearest."""
    for squarings, widest, rounds in _STAGES:
        for turn in range(rounds):
            difference = points[:, None] - points[None]  # (M, M, 3)
            squared = (difference**2).sum(-1)
            np.fill_diagonal(squared, 1 << 40)
            share = (max(int(squared.min()), 1) << _BITS) // np.maximum(squared, 1)
            for _ in range(squarings):
                share = share * share >> _BITS
            force = (share[..., None] * difference).sum(1)
            size = np.abs(force).max(1)
            usual = max(int(np.sort(size)[len(size) // 2]), 1)  # a point with less force moves less
            step = widest * _LEVEL * (rounds - turn) // rounds
            points = (points + force * step // np.maximum(size, usual)[:, None]).clip(0, _TOP)
    return points


_MOVES = np.array([move for move in product(range(-2, 3), repeat=3) if any(move)], dtype=np.int64)


def _polish(colors: NDArray[Any]) -> NDArray[Any]:
    """Moves one of the nearest colors (M, 3), 0..255, by up to 2 levels while that takes it away from all others."""
    colors = colors.copy()
    squared = ((colors[:, None] - colors[None]) ** 2).sum(-1)
    np.fill_diagonal(squared, 1 << 40)
    while True:
        nearest = squared.min(1)
        for i in np.flatnonzero(nearest == nearest.min()):
            moved = colors[i] + _MOVES
            moved = moved[((moved >= 0) & (moved <= 255)).all(1)]
            distances = ((moved[:, None] - colors[None]) ** 2).sum(-1)
            distances[:, i] = 1 << 40
            gain = distances.min(1)
            if gain.max() > nearest[i]:
                colors[i] = moved[gain.argmax()]
                squared[i] = squared[:, i] = distances[gain.argmax()]
                break
        else:
            return colors


def _lattice(count: int, draw: random.Random) -> NDArray[Any]:
    """``count`` points in 0.._TOP of the widest face-centered cubic lattice, at the first of some offsets that fits."""
    half = _TOP
    while True:
        grid = np.indices([_TOP // half + 3] * 3).reshape(3, -1).T - 1
        lattice = half * grid[grid.sum(1) % 2 == 0]
        for turn in range(9):
            offset = [_below(2 * half, draw) if turn else 0 for _ in range(3)]
            inside = lattice + np.array(offset, dtype=np.int64)
            inside = inside[((inside >= 0) & (inside <= _TOP)).all(1)]
            if len(inside) >= count:
                return inside[_order(len(inside), draw)[:count]]
        half -= max(half // 50, 1)


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


def refine(palette: NDArray[Any], trip: RoundTrip, seed: int, rounds: int, tries: int, keep: float) -> NDArray[Any]:
    """Gives confused classes other colors while the round trip's mIoU rises.

    In each round the classes are visited from the lowest IoU on; a class tries to swap its color with the class it is
    most confused with and with random ones, and to move to free colors. The search ends after a round without gain.

    Args:
        palette: (N + 1, 3), the start.
        trip: what to improve.
        seed: of the tries.
        rounds: rounds at most.
        tries: colors tried a class and round.
        keep: share of the smallest distance at the start that has to remain.

    Returns:
        (N + 1, 3).
    """
    rng, floor, best = np.random.default_rng(seed), keep * min_distance(palette), trip.mean_iou(palette)
    count = len(palette) - 1
    for turn in range(rounds):
        matrix = trip.confusion(palette)
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
            for color in rng.integers(0, 256, (64, 3)):
                moved = palette.copy()
                moved[c] = color
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
