"""Latent posterior learning (GSS, CVPR 2023, section 3.2, stage I): the colors beta of the linear map X(c) = c beta.

The paper fixes the dVAE and chooses X so that a mask survives mask -> maskige -> tokens -> maskige -> mask, which needs
no training where colors are far apart. ``learn_palette`` searches such, and may improve them by the round trip itself.
"""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import house
from common.classes import load_class_table
from common.converters import integer, number
from common.devices import pick_device
from common.errors import InputError
from common.files import check_writable, only_writer_of, room_for, write_json
from common.images import IGNORE, Labels
from common.options import Options, option
from common.pairing import MASK_SUFFIXES, list_files
from gss.dvae import DVAE
from gss.palette import PALETTE_FOLDER, farthest_color, load_palette, min_distance, read_palette_file
from gss.palette_picture import PICTURES, draw_palette
from gss.palette_search import grid_palette, refine, spread_palette, voronoi_masks
from gss.roundtrip import RoundTrip, class_iou


@dataclass(frozen=True, kw_only=True)
class PaletteSearchOptions(Options):
    """Whose colors are searched, how, and where they go."""

    num_classes: int | None = option(
        None, convert=integer(0, 10**6), help="N (default: the data set's or class table's)"
    )
    dataset: str | None = option(None, help="cityscapes, ade20k or mseg: compares with its published colors")
    classes: str | None = option(None, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    method: str = option("spread", choices=("spread", "grid"), help="how colors are chosen")
    seed: int = option(0, convert=integer(0, 2**63 - 1), help="seed of all random choices")
    restarts: int = option(16, convert=integer(1), help="starts of the search for far-apart colors")
    d_vae: Path | None = option(None, metavar="FILE", help="dVAE weights, or a GSS checkpoint: improves the round trip")
    masks: Path | None = option(
        None, metavar="DIR", help="folder of index masks for the round trip (default: polygons)"
    )
    max_masks: int = option(16, convert=integer(1, 10**6), help="masks used for the round trip")
    scale: int = option(2, convert=integer(1, 64), help="enlargement of masks for the dVAE; heads use 2")
    rounds: int = option(10, convert=integer(0, 10**6), help="rounds of improvement at most")
    tries: int = option(6, convert=integer(1, 10**6), help="colors tried a class and round")
    keep_distance: float = option(0.7, convert=number(0, 1), help="share of the least distance to keep")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    out: Path | None = option(None, metavar="FILE", help="palette file to write (default: print only)")
    picture: Path | None = option(None, metavar="FILE", help="picture to write: the palette and a round trip")

    def command(self) -> str:
        """The command that makes this palette, with all that decides it."""
        decides = ["dataset", "classes", "num_classes", "method", "seed", "restarts"]
        decides += ["d_vae", "masks", "max_masks", "scale", "rounds", "tries", "keep_distance"] if self.d_vae else []
        given = ((f"--{name.replace('_', '-')}", getattr(self, name)) for name in decides)
        words = (word for flag, value in given if value is not None for word in (flag, str(value)))
        return shlex.join(["python", "-m", house.module_path("scripts.posterior_learning"), *words])


@dataclass(frozen=True, eq=False)
class LearnedPalette:
    """Colors, and how good they are.

    Attributes:
        names: N class names.
        palette: (N + 1, 3) int64, 0..255, the ignore color last.
        report: of the first colors, the improved and the published ones, where there are any: ``min_distance`` of the
            classes' colors and ``round_trip_miou``, by what they are called.
        class_iou: (N,) of the round trip through the dVAE; None without one.
    """

    names: tuple[str, ...]
    palette: NDArray[Any]
    report: dict[str, dict[str, float]]
    class_iou: Tensor | None


def learn_palette(options: PaletteSearchOptions) -> LearnedPalette:
    """Searches far-apart colors, improves them by the round trip if there is a dVAE, and writes what was asked for.

    Raises:
        InputError: classes, masks or weights cannot be used, or an output cannot be written.
    """
    device = pick_device(options.device)
    names, labels = class_names(options)
    outputs = [(name, path) for name in ("out", "picture") if (path := getattr(options, name)) is not None]
    if options.picture is not None and options.picture.suffix not in PICTURES:
        raise InputError(f"‹picture› {options.picture}: name a file with one of {', '.join(PICTURES)}")
    for name, path in outputs:
        if path.is_dir():
            raise InputError(f"‹{name}› {path}: is a folder; name a file")
    if options.masks is not None:
        masks = read_masks(options.masks, options.max_masks, labels)
    else:
        masks = voronoi_masks(len(names), options.max_masks, 128, options.seed)
    dvae = DVAE(str(options.d_vae)).to(device) if options.d_vae else None
    trip = RoundTrip(masks, dvae, options.scale, device)
    with ExitStack() as stack:
        for name, path in outputs:
            check_writable(path.parent, f"‹{name}›")
            stack.enter_context(only_writer_of(path, f"‹{name}›"))
            stack.enter_context(room_for(f"‹{name}›", path.parent))
        learned = _search(options, names, trip)
        if options.out is not None:
            write_json(_palette_file(options, learned, labels), options.out, indent=None)
        if options.picture is not None:
            draw_palette(options.picture, learned.palette, names, trip)
    return learned


def _search(options: PaletteSearchOptions, names: tuple[str, ...], trip: RoundTrip) -> LearnedPalette:
    if options.method == "grid":
        colors = grid_palette(len(names), options.seed, options.dataset)
        palette = np.concatenate([colors, farthest_color(colors)[None]])
    else:
        palette = spread_palette(len(names) + 1, options.seed, options.restarts)
    judged = {f"{options.method}, seed {options.seed}": palette}
    if trip.dvae is not None and options.rounds:
        palette = refine(palette, trip, options.seed, options.rounds, options.tries, options.keep_distance)
        judged["improved by the round trip"] = palette
    if options.dataset:
        judged[f"published {options.dataset}"] = load_palette(f"published_{options.dataset}")
    report = {
        title: {"min_distance": min_distance(colors[:-1]), "round_trip_miou": trip.mean_iou(colors)}
        for title, colors in judged.items()
    }
    return LearnedPalette(names, palette, report, class_iou(trip.confusion(palette)) if trip.dvae else None)


def class_names(options: PaletteSearchOptions) -> tuple[tuple[str, ...], Labels]:
    """Names of the N classes, from the data set, the class table, or their numbers; how masks are read.

    Raises:
        InputError: N is unknown, contradicts the names, or is not in 2..255.
    """
    names: tuple[str, ...] | None = None
    labels = None
    if options.dataset:
        published = PALETTE_FOLDER / f"published_{options.dataset}.json"
        if not published.is_file():
            stems = sorted(path.stem.removeprefix("published_") for path in PALETTE_FOLDER.glob("published_*.json"))
            raise InputError(
                f"‹dataset› {options.dataset}: none of {', '.join(stems)}; give ‹num_classes› or ‹classes› instead"
            )
        names = tuple(map(str, read_palette_file(published)["classes"]))
    elif options.classes:
        table = load_class_table(options.classes)
        names, labels = table.names, table.labels
    if names is None and options.num_classes is None:
        raise InputError("‹num_classes›: give it, or ‹dataset›, or ‹classes›")
    names = names or tuple(str(i) for i in range(options.num_classes or 0))
    if options.num_classes not in (None, len(names)):
        known = options.dataset or options.classes
        raise InputError(f"‹num_classes› {options.num_classes}: {known} has {len(names)} classes")
    if not 2 <= len(names) <= 255:
        raise InputError(f"‹num_classes› {len(names)}: must be in 2..255, the ids that a mask can hold beside ignore")
    return names, labels or Labels(len(names))


def read_masks(folder: Path, count: int, labels: Labels) -> list[Tensor]:
    """``count`` masks of a folder, evenly spaced by name: class ids (H, W), int64, 255 to ignore.

    Raises:
        InputError: no masks, unreadable ones, or ids that are no classes.
    """
    paths = list(list_files(folder, MASK_SUFFIXES, "‹masks›").values())
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))
    masks = [labels.read(paths[i]) for i in chosen]
    if all((mask == IGNORE).all() for mask in masks):
        raise InputError(f"‹masks› {folder}: no mask shows a class, all pixels are to be ignored")
    return [torch.from_numpy(mask.astype(np.int64)) for mask in masks]


def _palette_file(options: PaletteSearchOptions, learned: LearnedPalette, labels: Labels) -> dict[str, Any]:
    """A class table with the learned colors, ``ignore_color``, and how they were made."""
    table: dict[str, Any] = {
        "classes": learned.names,
        "palette": learned.palette[:-1].tolist(),
        "ignore_index": labels.ignore_index,
    }
    if labels.of_id is not None:  # ids in mask files are not class ids
        ignored = np.flatnonzero(labels.table == IGNORE).tolist()
        table["mask_values"] = [labels.of_id.index(i) for i in range(labels.num_classes)]
        table["mask_ignore"] = [id_ for id_ in ignored if id_ != labels.ignore_index]
    if labels.colors:  # those of masks, which the new ones are not
        colors = [list(color[:3]) for color in labels.colors]
        table["mask_colors"], table["mask_ignore_colors"] = colors[: labels.num_classes], colors[labels.num_classes :]
    return {
        **table,
        "ignore_color": learned.palette[-1].tolist(),
        "method": options.method,
        "seed": options.seed,
        "command": options.command(),
        "report": learned.report,
    }
