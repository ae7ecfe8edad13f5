"""Predicts masks for images that have none."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from common import command as cli
from common.converters import integer
from common.devices import pick_device
from common.errors import InputError
from common.files import check_writable, digest, inside, only_writer, room_for
from common.pairing import IMAGE_SUFFIXES, list_files
from common.ranks import Ranks
from segmentation.config import add_cfg_options, load_config, set_data
from segmentation.inference import from_views, load_segmentor
from segmentation.prediction import Outputs, open_folder, predict, write_table
from segmentation.views import set_slide

DESCRIPTION = """Predicts the masks of images: --out/masks/<name>.png of 8 bits, with the ids that the class table's
mask files have, as filter.sh writes them (LoveDA: 1..7); --out/classes.json says which, for other commands' --classes.

  python -m scripts.segmentor predict work_dirs/tiny/tiny.py --load-from work_dirs/tiny/iter_1000.pth \\
      --images data/unlabeled --out predicted --overlay
With --overlay, --out/overlays/<name>.png shows image and classes in one; with --probabilities,
--out/probabilities/<name>.npy holds each class's probability, float16 (classes, height, width).
Several processes: torchrun --nproc-per-node 4 -m scripts.segmentor predict ... A stopped run goes on with the same
command; images that were changed meanwhile are predicted again."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION, "predict")
    parser.add_argument("config", help="mmseg config of the segmentor; it is Python, and runs")
    parser.add_argument("--load-from", required=True, help="its weights")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, or one image")
    parser.add_argument("--out", type=Path, required=True, help="folder for masks and what else is asked for")
    parser.add_argument("--classes", help="class table, by name or path to a classes.json (default: the config's)")
    parser.add_argument("--overlay", action="store_true", help="write pictures of the images under their classes")
    parser.add_argument("--probabilities", action="store_true", help="write each class's probabilities")
    parser.add_argument(
        "--tta",
        action="store_true",
        help="the mean over scaled and mirrored views of each image (the "
        "config's tta_pipeline, else 6 scales, mirrored)",
    )
    parser.add_argument(
        "--slide",
        type=integer(1, 10**5),
        nargs="+",
        metavar=("WINDOW", "STRIDE"),
        help="look at windows of so many pixels, every STRIDE pixels (default: whole images, as the "
        "config says; STRIDE: 2/3 of WINDOW)",
    )
    parser.add_argument("--batch-size", "--batch-size", type=integer(1), default=1, help="images a batch, of one size")
    parser.add_argument(
        "--num-workers",
        "--num-workers",
        type=integer(0),
        default=min(4, os.cpu_count() or 1),
        help="processes that read images",
    )
    add_cfg_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    if args.slide and len(args.slide) > 2:
        raise InputError("--slide: write WINDOW, or WINDOW STRIDE")
    return args


def images_of(path: Path) -> dict[str, Path]:
    """The images of a folder, or the one image, by name.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"--images {path}: is none of {', '.join(IMAGE_SUFFIXES)}")
        return {path.stem: path}
    return list_files(path, IMAGE_SUFFIXES, "--images")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    config = load_config(args.config, args.cfg_options, args.trust_config)
    set_data(config, classes=args.classes)
    if args.slide:
        set_slide(config, *args.slide)
    images = images_of(args.images)
    if inside(args.out, args.images):
        raise InputError(f"--out {args.out}: lies inside {args.images}; name another one")
    segmentor = load_segmentor(config, args.load_from, pick_device(args.device))
    if args.tta:
        segmentor = from_views(segmentor)
    made_from = {"config": segmentor.settings(), "checkpoint": digest(Path(args.load_from))}
    with room_for("--out", args.out):
        ranks = Ranks()
        check_writable(args.out, "--out")
        with ranks.first_holds(only_writer(args.out, "--out")):
            ranks.once(lambda: open_folder(args.out, made_from))
            if ranks.rank == 0:
                write_table(segmentor, args.out)
            outputs = Outputs(args.out, args.overlay, args.probabilities)
            predict(segmentor, images, outputs, ranks, args.batch_size, args.num_workers)
        if ranks.rank == 0:
            print(f"{len(images)} masks in {args.out / 'masks'}")


if __name__ == "__main__":
    cli.run(main)
