"""New layouts: masks of real pieces, moved, mirrored, turned, scaled and pasted into masks of other scenes.

A piece is a connected region of one class with a margin of what surrounds it, so that a building brings its yard along.
It is cut and pasted as ClassMix (Olsson et al., WACV 2021, section 3.1) cuts and pastes classes, between masks instead
of images: no image is needed, since one is painted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from common.images import IGNORE, Labels
from common.rng import Stream, seed_from

Mask = NDArray[np.uint8]
LARGEST = 0.25  # of a mask: a larger region is a scene, and its straight edges would show where its mask ended
TRIES = 6  # pieces looked at for one that is pasted
CACHED = 64  # masks kept in memory


@dataclass(frozen=True)
class Piece:
    """A part of a mask.

    Attributes:
        ids: (h, w) class ids.
        shape: (h, w) bool, the pixels that belong to it.
    """

    ids: Mask
    shape: NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """A new mask.

    Attributes:
        ids: (H, W) class ids and 255.
        base: index of the mask that it began as.
        pieces: class of each piece that was pasted, and the index of the mask that it was taken from.
    """

    ids: Mask
    base: int
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Moves:
    """How pieces are changed.

    Attributes:
        pieces: how many are pasted into a mask at most.
        margin: pixels around a region that come with it.
        smallest: pixels of the smallest region.
        scales: smallest and largest factor of size.
    """

    pieces: int = 4
    margin: int = 4
    smallest: int = 64
    scales: tuple[float, float] = (0.7, 1.4)


def shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each class's share of the pixels (C,) of pixels by class (C,)."""
    return counts / max(int(counts.sum()), 1)


def default_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Towards even shares, half of the way in logarithms: (C,) of pixels by class (C,); an absent class stays so."""
    roots = np.sqrt(shares(counts))
    even: NDArray[np.float64] = roots / max(float(roots.sum()), 1e-12)
    return even


def pixels_by_class(ids: Mask, classes: int) -> NDArray[np.int64]:
    """Pixels of each class (C,) in a mask (H, W)."""
    return np.bincount(ids.ravel(), minlength=256)[:classes].astype(np.int64)


def layouts(
    masks: Sequence[Path],
    labels: Labels,
    counts: NDArray[np.int64],
    target: NDArray[np.float64],
    number: int,
    moves: Moves,
    seed: int = 0,
) -> Iterator[Layout]:
    """New masks whose pixels, taken together, come near the class shares asked for.

    A piece stays where it brings the shares of all layouts so far nearer to the target (sum of absolute differences).
    Layout n depends on those before it, not on how many follow: the first hundred of a thousand are a hundred.

    Args:
        masks: N mask files.
        labels: how they are read.
        counts: pixels of each class in each mask (N, C).
        target: shares asked for (C,), their sum is 1.
        number: of layouts.
        moves: how pieces are changed.
        seed: of all draws.

    Yields:
        the layouts.
    """
    read = lru_cache(CACHED)(labels.read)
    classes = counts.shape[1]
    total = np.zeros(classes, dtype=np.int64)
    for n in range(number):
        draw = np.random.default_rng(seed_from(seed, Stream.LAYOUT, n))
        base = int(draw.integers(len(masks)))
        ids, pieces = turned(read(masks[base]), draw), []
        for _ in range(int(draw.integers(1, moves.pieces + 1))):
            for _ in range(TRIES):
                now = total + pixels_by_class(ids, classes)
                lacking = np.clip(target - shares(now), 0, None) * (counts.sum(0) > 0)
                if lacking.sum() <= 0:
                    break
                wanted = int(draw.choice(classes, p=lacking / lacking.sum()))
                donor = int(draw.choice(len(masks), p=shares(counts[:, wanted])))
                piece = cut(read(masks[donor]), wanted, moves, draw)
                if piece is None:
                    continue
                made = pasted(ids, changed(piece, moves, draw), draw)
                after = total + pixels_by_class(made, classes)
                if np.abs(shares(after) - target).sum() < np.abs(shares(now) - target).sum():
                    ids = made
                    pieces.append((wanted, donor))
                    break
        total += pixels_by_class(ids, classes)
        yield Layout(ids, base, tuple(pieces))


def turned(ids: Mask, draw: np.random.Generator) -> Mask:
    """A mask (H, W) mirrored or not, and turned: by quarters where it is square, by halves otherwise."""
    turns = int(draw.integers(4))
    if ids.shape[0] != ids.shape[1]:
        turns = 2 * (turns // 2)
    ids = np.rot90(ids, turns)
    return np.ascontiguousarray(ids[:, ::-1] if draw.random() < 0.5 else ids)


def cut(ids: Mask, wanted: int, moves: Moves, draw: np.random.Generator) -> Piece | None:
    """One of the connected regions of a class in a mask (H, W), with its margin; None where none can be moved.

    Regions are drawn alike, whatever their size: else large ones alone would ever be moved.
    """
    _, regions, stats, _ = cv2.connectedComponentsWithStats((ids == wanted).astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    movable = 1 + np.flatnonzero((areas >= moves.smallest) & (areas <= LARGEST * ids.size))
    if not len(movable):
        return None
    shape = (regions == int(draw.choice(movable))).astype(np.uint8)
    if moves.margin:
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * moves.margin + 1,) * 2)
        shape = cv2.dilate(shape, disk).astype(np.uint8)
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    part = ids[window]
    return Piece(part, (shape[window] > 0) & (part != IGNORE))


def changed(piece: Piece, moves: Moves, draw: np.random.Generator) -> Piece:
    """A piece mirrored or not, scaled and turned by any angle; pixels are taken, never mixed."""
    low, high = np.log(moves.scales)
    scale, angle = float(np.exp(draw.uniform(low, high))), float(draw.uniform(0, 360))
    ids, shape = piece.ids, piece.shape.astype(np.uint8)
    if draw.random() < 0.5:
        ids, shape = ids[:, ::-1], shape[:, ::-1]
    height, width = shape.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])  # times the scale
    size = (int(np.ceil(height * sin + width * cos)) + 1, int(np.ceil(height * cos + width * sin)) + 1)  # (w, h)
    matrix[0, 2] += (size[0] - width) / 2
    matrix[1, 2] += (size[1] - height) / 2
    warped = (
        cv2.warpAffine(np.ascontiguousarray(part), matrix, size, flags=cv2.INTER_NEAREST) for part in (ids, shape)
    )
    new_ids, new_shape = warped
    return Piece(new_ids.astype(np.uint8), new_shape > 0)


def pasted(ids: Mask, piece: Piece, draw: np.random.Generator) -> Mask:
    """A mask (H, W) with a piece somewhere on it, its middle within; pixels to ignore stay as they are."""
    (height, width), (tall, wide) = ids.shape, piece.shape.shape
    top = int(draw.integers(height)) - tall // 2
    left = int(draw.integers(width)) - wide // 2
    rows, columns = slice(max(top, 0), min(top + tall, height)), slice(max(left, 0), min(left + wide, width))
    inner = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    made = ids.copy()
    part = made[rows, columns]
    where = piece.shape[inner] & (part != IGNORE)
    part[where] = piece.ids[inner][where]
    return made
