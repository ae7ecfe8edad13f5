"""Learns a palette: far-apart colors for classes (posterior learning, GSS, CVPR 2023, section 3.2)."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import command as cli
from common import house
from common.classes import load_class_table
from common.converters import integer, number
from common.devices import pick_device
from common.errors import InputError
from common.files import atomic_path, check_writable, only_writer_of, room_for, write_json
from common.images import IGNORE, Labels
from common.pairing import MASK_SUFFIXES, list_files
from gss.dvae import DVAE
from gss.maskige import PALETTE_FOLDER, Maskige, farthest_color, load_palette, min_distance, read_palette_file
from gss.palette_search import RoundTrip, grid_palette, refine, spread_palette, voronoi_masks
from gss.roundtrip import class_iou

PICTURES = (".png", ".jpg", ".svg", ".pdf")

DESCRIPTION = """Learns a palette for N classes and one color more for ignored pixels.

  python -m scripts.posterior_learning --dataset ade20k --out gss/palettes/ade20k.json --picture ade20k.png
  python -m scripts.posterior_learning --classes classes.json --d-vae dvae.safetensors --masks label_train --out my.json

Method `spread` maximizes the smallest distance between two colors; `grid` is the published color grid with jitter.
Both count with integers: a seed gives the same colors on every machine.
With --d-vae, classes that the round trip mask -> tokens -> mask confuses then change colors until that stops helping
(which the last bits of a dVAE's sums may decide).
The result is a class table (classes, palette, ignore_index) with the field ignore_color."""


def draw(path: Path, palette: np.ndarray, names: list[str], trip: RoundTrip) -> None:
    """A picture: the colors with their ids, and a mask before and after the round trip."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(10 if len(names) <= 20 else 20, len(palette))
    rows = -(-len(palette) // columns)
    figure, axes = plt.subplots(2, 1, figsize=(12, 4.5 + 0.45 * rows), height_ratios=[rows * 0.45, 4])
    swatches = np.full((rows * columns, 3), 255)
    swatches[: len(palette)] = palette
    axes[0].imshow(swatches.reshape(rows, columns, 3).astype(np.uint8), aspect="auto")
    for i, color in enumerate(palette):
        text = "ignore" if i == len(names) else names[i].replace(" ", "\n") if len(names) <= 20 else str(i)
        ink = "black" if color @ [0.3, 0.59, 0.11] > 110 else "white"
        axes[0].text(i % columns, i // columns, text, ha="center", va="center", color=ink, fontsize=6, parse_math=False)
    axes[0].set_title(f"{len(names)} classes, smallest distance {min_distance(palette):.1f}")
    mask = trip.masks[0]
    found, colors = trip(palette, mask)
    first = Maskige(palette).encode(mask[None])[0]
    wrong = ((found != mask) & (mask < len(names))).cpu()
    images = [first.movedim(0, -1).cpu(), colors.round().byte().movedim(0, -1).cpu(), ~wrong]
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
    parser.add_argument(
        "--num-classes", type=integer(0, 10**6), default=None, help="N (default: the data set's or class table's)"
    )
    parser.add_argument(
        "--dataset", default=None, help="cityscapes, ade20k or mseg: compares with its published colors"
    )
    parser.add_argument("--classes", default=None, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    parser.add_argument("--method", choices=("spread", "grid"), default="spread", help="how colors are chosen")
    parser.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, help="seed of all random choices")
    parser.add_argument("--restarts", type=integer(1), default=16, help="starts of the search for far-apart colors")
    parser.add_argument("--d-vae", default=None, help="dVAE weights, or a GSS checkpoint: improves the round trip")
    parser.add_argument("--masks", default=None, help="folder of index masks for the round trip (default: polygons)")
    parser.add_argument("--max-masks", type=integer(1, 10**6), default=16, help="masks used for the round trip")
    parser.add_argument(
        "--scale", type=integer(1, 64), default=2, help="enlargement of masks for the dVAE; heads use 2"
    )
    parser.add_argument("--rounds", type=integer(0, 10**6), default=10, help="rounds of improvement at most")
    parser.add_argument("--tries", type=integer(1, 10**6), default=6, help="colors tried a class and round")
    parser.add_argument("--keep-distance", type=number(0, 1), default=0.7, help="share of the least distance to keep")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default=None, help="palette file to write (default: print only)")
    parser.add_argument("--picture", default=None, help="picture to write: the palette and a round trip")
    return parser.parse_args(argv)


def class_names(args: argparse.Namespace) -> tuple[list[str], Labels]:
    """Names of the N classes, from the data set, the class table, or their numbers; how masks are read.

    Raises:
        InputError: N is unknown, contradicts the names, or is not in 2..255.
    """
    names, labels = None, None
    if args.dataset:
        published = PALETTE_FOLDER / f"published_{args.dataset}.json"
        if not published.is_file():
            known = ", ".join(
                sorted(p.stem.removeprefix("published_") for p in PALETTE_FOLDER.glob("published_*.json"))
            )
            raise InputError(f"--dataset {args.dataset}: none of {known}; give --num-classes or --classes instead")
        names = read_palette_file(published)["classes"]
    elif args.classes:
        table = load_class_table(args.classes)
        names, labels = list(table.names), table.labels
    if names is None and args.num_classes is None:
        raise InputError("--num-classes: give it, or --dataset, or --classes")
    names = names or [str(i) for i in range(args.num_classes)]
    if args.num_classes not in (None, len(names)):
        raise InputError(f"--num-classes {args.num_classes}: {args.dataset or args.classes} has {len(names)} classes")
    if not 2 <= len(names) <= 255:
        raise InputError(f"--num-classes {len(names)}: must be in 2..255, the ids that a mask can hold beside ignore")
    return [str(name) for name in names], labels or Labels(len(names))


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


def command_line(args: argparse.Namespace) -> str:
    """The line that makes this palette, with all that decides it."""
    decides = ["dataset", "classes", "num_classes", "method", "seed", "restarts"]
    decides += ["d_vae", "masks", "max_masks", "scale", "rounds", "tries", "keep_distance"] if args.d_vae else []
    given = ((f"--{name.replace('_', '-')}", getattr(args, name)) for name in decides)
    words = (word for option, value in given if value is not None for word in (option, str(value)))
    return shlex.join(["python", "-m", house.module_path("scripts.posterior_learning"), *words])


def mask_fields(labels: Labels) -> dict[str, list[int]]:
    """What a class table says of mask files whose ids are not class ids."""
    if labels.of_id is None:
        return {}
    ignored = np.flatnonzero(labels.table == IGNORE).tolist()
    return {
        "mask_values": [labels.of_id.index(i) for i in range(labels.num_classes)],
        "mask_ignore": [id_ for id_ in ignored if id_ != labels.ignore_index],
    }


def learn(args: argparse.Namespace, names: list[str], labels: Labels, trip: RoundTrip) -> None:
    """Searches, reports, and writes what was asked for."""
    if args.method == "grid":
        colors = grid_palette(len(names), args.seed, args.dataset)
        palette = np.concatenate([colors, farthest_color(colors)[None]])
    else:
        palette = spread_palette(len(names) + 1, args.seed, args.restarts)
    rows = [(f"{args.method}, seed {args.seed}", palette)]
    if trip.dvae is not None and args.rounds:
        palette = refine(palette, trip, args.seed, args.rounds, args.tries, args.keep_distance)
        rows.append(("improved by the round trip", palette))
    if args.dataset:
        rows.append((f"published {args.dataset}", load_palette(f"published_{args.dataset}")))
    means = "round trip mIoU " + ("through the dVAE" if trip.dvae else "through noise of std 20")
    report: dict[str, Any] = {}
    for title, row in rows:
        distance, miou = min_distance(row[:-1]), trip.mean_iou(row)
        report[title] = {"min_distance": distance, "round_trip_miou": miou}
        print(f"{title:32} smallest distance {distance:6.2f}  {means} {miou:.4f}")
    if trip.dvae is not None:
        for name, iou in zip(names, class_iou(trip.matrix(palette)).tolist(), strict=True):
            print(f"  {name:32} IoU {iou:.4f}")
    if args.out:
        table = {
            "classes": names,
            "palette": palette[:-1].tolist(),
            "ignore_index": labels.ignore_index,
            **mask_fields(labels),
            "ignore_color": palette[-1].tolist(),
            "method": args.method,
            "seed": args.seed,
            "command": command_line(args),
            "report": report,
        }
        write_json(table, Path(args.out), indent=None)
    if args.picture:
        draw(Path(args.picture), palette, names, trip)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    args.device = pick_device(args.device)
    names, labels = class_names(args)
    outputs = [(option, Path(path)) for option, path in (("--out", args.out), ("--picture", args.picture)) if path]
    if args.picture and Path(args.picture).suffix not in PICTURES:
        raise InputError(f"--picture {args.picture}: name a file with one of {', '.join(PICTURES)}")
    for option, path in outputs:
        if path.is_dir():
            raise InputError(f"{option} {path}: is a folder; name a file")
    masks = (
        read_masks(args.masks, args.max_masks, labels)
        if args.masks
        else voronoi_masks(len(names), args.max_masks, 128, args.seed)
    )
    dvae = DVAE(args.d_vae).to(args.device) if args.d_vae else None
    with ExitStack() as stack:
        for option, path in outputs:
            check_writable(path.parent, option)
            stack.enter_context(only_writer_of(path, option))
            stack.enter_context(room_for(option, path.parent))
        learn(args, names, labels, RoundTrip(masks, dvae, args.scale, args.device))


if __name__ == "__main__":
    cli.run(main)
