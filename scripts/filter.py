"""Sets the pixels of synthesized images to 255 that a segmentor trained on real images finds wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common import command as cli
from common.config_options import ConfigOptions
from common.converters import integer, number
from common.devices import pick_device
from common.errors import InputError
from common.files import check_writable, digest, inside, only_writer, room_for
from common.options import add_options
from common.pairing import (
    MASK_SUFFIXES,
    Pair,
    faults_of,
    list_files,
    listed,
    pair_files,
    sound_pairs,
    without_faults,
)
from common.ranks import Ranks
from post_processing.filter_run import (
    Rule,
    Source,
    filter_synthesized,
    measure_real,
    report,
    saved_fault,
    saved_source,
    say_unseen,
)
from post_processing.filter_state import REAL_LOSS, RealLoss, State, file_stamp
from segmentation.config import load_config, set_data
from segmentation.inference import Segmentor, load_segmentor, pixel_losses, segment

DESCRIPTION = """Filters the masks of synthesized images (FreeMask's rule): the cross-entropy of a segmentor trained on
real images, averaged for each class over all real pixels, says what is normal; a synthesized pixel whose loss exceeds
margin x its class's mean becomes 255. Synthesized images are named <mask name>_seed_<seed>.jpg or .png.

  python -m scripts.filter work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth \\
      --real-img-path data/img_train --real-label-path data/label_train \\
      --syn-img-path out/images --syn-mask-path data/label_train --filtered-mask-path out/filtered
Another margin, from losses that --save-loss wrote, without the segmentor:
  python -m scripts.filter --from-loss out/loss --syn-mask-path data/label_train --filtered-mask-path out/filtered_2 \\
      --tolerance-margin 2
Several GPUs: torchrun --nproc-per-node 4 -m scripts.filter ... A stopped run goes on with the same command."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; refused where options are missing or contradict each other."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("config", nargs="?", help="mmseg config of the segmentor trained on real images")
    parser.add_argument("checkpoint", nargs="?", help="its weights")
    parser.add_argument("--real-img-path", type=Path, help="real images")
    parser.add_argument("--real-label-path", "--real-mask-path", type=Path, help="their masks, of the same names")
    parser.add_argument("--syn-img-path", type=Path, help="synthesized images")
    parser.add_argument("--syn-mask-path", type=Path, required=True, help="masks that they were synthesized from")
    parser.add_argument("--filtered-mask-path", type=Path, required=True, help="folder for filtered masks and report")
    parser.add_argument("--classes", help="class table, by name or path to a classes.json (default: the config's)")
    parser.add_argument(
        "--tolerance-margin", type=number(0), default=1.25, help="limit = margin x mean loss of the class"
    )
    parser.add_argument(
        "--unseen-class",
        choices=("ignore", "keep"),
        default="ignore",
        help="pixels of a class that no real image shows: set to 255, or kept",
    )
    parser.add_argument("--save-loss", type=Path, help="folder for each pixel's loss (float16), for --from-loss")
    parser.add_argument("--from-loss", type=Path, help="folder that --save-loss wrote; replaces segmentor and images")
    parser.add_argument("--skip-invalid", action="store_true", help="leave out files that are unpaired or damaged")
    parser.add_argument(
        "--batch-size",
        "--batch-size",
        type=integer(1, 4096),
        default=8,
        help="images a batch, of one size; another one changes losses by their last bits",
    )
    parser.add_argument(
        "--num-workers",
        "--num-workers",
        type=integer(0, 256),
        default=min(4, os.cpu_count() or 1),
        help="processes that read images",
    )
    add_options(parser, ConfigOptions)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    cli.taken(ConfigOptions, args)
    needed = {
        "CONFIG": args.config,
        "CHECKPOINT": args.checkpoint,
        "--real-img-path": args.real_img_path,
        "--real-label-path": args.real_label_path,
        "--syn-img-path": args.syn_img_path,
    }
    if args.from_loss:
        others = {"--save-loss": args.save_loss, "--cfg-options": args.cfg_options}
        surplus = [name for name, value in {**needed, **others}.items() if value]
        if surplus:
            raise InputError(f"--from-loss replaces {', '.join(surplus)}; leave out one or the other")
    elif missing := [name for name, value in needed.items() if not value]:
        raise InputError(f"missing: {', '.join(missing)} (see --help)")
    if not args.tolerance_margin > 0:
        raise InputError(f"--tolerance-margin {args.tolerance_margin}: must be above 0")
    return args


def refuse_folders(args: argparse.Namespace) -> None:
    """Refuses output folders inside input folders, and those that cannot be written to."""
    inputs = (args.real_img_path, args.real_label_path, args.syn_img_path, args.syn_mask_path, args.from_loss)
    for option, out in (("--filtered-mask-path", args.filtered_mask_path), ("--save-loss", args.save_loss)):
        for folder in inputs:
            if out and inside(out, folder):
                raise InputError(f"{option} {out}: lies inside {folder}; name another one")
    if args.save_loss and args.save_loss.resolve() == args.filtered_mask_path.resolve():
        raise InputError("--save-loss and --filtered-mask-path: name two folders")


def segmentor_source(segmentor: Segmentor, args: argparse.Namespace) -> Source:
    """Losses of a segmentor."""

    def losses(
        pairs: Sequence[Pair], batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        files = [(pair.image, pair.mask) for pair in pairs]
        for found in segment(segmentor, files, batches, args.num_workers):
            yield found.index, pixel_losses(found.logits, targets[found.ids]), found.ids

    targets = segmentor.rule.targets()
    return Source(segmentor.class_names, segmentor.rule.labels(), losses, args.batch_size)


def from_segmentor(args: argparse.Namespace, ranks: Ranks) -> tuple[Source, RealLoss, State, list[Pair], list[str]]:
    """Losses of the segmentor, what it finds in the real images, the state, synthesized pairs, files left out."""
    config = load_config(args.config, args.cfg_options, args.trust_config)
    set_data(config, classes=args.classes)
    segmentor = load_segmentor(config, args.checkpoint, pick_device(args.device))
    labels = segmentor.rule.labels()
    real, syn = ranks.once(
        lambda: [
            sound_pairs(images, masks, options, labels, same_size=same, skip_invalid=args.skip_invalid)
            for images, masks, options, same in (
                (args.real_img_path, args.real_label_path, ("--real-img-path", "--real-label-path"), True),
                (args.syn_img_path, args.syn_mask_path, ("--syn-img-path", "--syn-mask-path"), False),
            )
        ]
    )
    real_files = [(pair.name, file_stamp(pair.image, pair.mask)) for pair in real.pairs]
    state = State(
        args.filtered_mask_path,
        {
            "config": segmentor.settings(),
            "checkpoint": digest(Path(args.checkpoint)),
            "real images": digest(real_files),
            **rule_settings(args),
        },
    )
    ranks.once(state.open)
    source = segmentor_source(segmentor, args)
    return source, measure_real(source, real.pairs, state, ranks), state, syn.pairs, real.left_out + syn.left_out


def from_losses(args: argparse.Namespace, ranks: Ranks) -> tuple[Source, RealLoss, State, list[Pair], list[str]]:
    """The same from a folder that --save-loss wrote."""
    source, real = saved_source(args.from_loss)

    def find() -> tuple[list[Pair], list[str]]:
        pairs, orphans = pair_files(
            list_files(args.from_loss, (".npy",), "--from-loss"),
            list_files(args.syn_mask_path, MASK_SUFFIXES, "--syn-mask-path"),
            ("--from-loss", "--syn-mask-path"),
            args.skip_invalid,
        )
        faults = faults_of(pairs, lambda pair: saved_fault(pair, source.labels, real), f"--from-loss {args.from_loss}")
        pairs, wrong = without_faults(pairs, faults, f"--from-loss {args.from_loss}", args.skip_invalid)
        return pairs, orphans + wrong

    pairs, skipped = ranks.once(find)
    state = State(args.filtered_mask_path, {"--from-loss": digest(args.from_loss / REAL_LOSS), **rule_settings(args)})
    ranks.once(state.open)
    return source, real, state, pairs, skipped


def rule_settings(args: argparse.Namespace) -> dict[str, str | float]:
    """What the rule depends on."""
    return {"--tolerance-margin": args.tolerance_margin, "--unseen-class": args.unseen_class}


def run_filter(args: argparse.Namespace, ranks: Ranks) -> None:
    """Measures the real images, filters the synthesized ones, reports."""
    source, real, state, pairs, skipped = (from_losses if args.from_loss else from_segmentor)(args, ranks)
    if ranks.rank == 0:
        if skipped:
            print(f"{len(skipped)} files left out: {listed(skipped)}", file=sys.stderr)
        say_unseen(real, args.unseen_class)
    rule = Rule(args.tolerance_margin, args.unseen_class, args.filtered_mask_path, args.save_loss)
    records = filter_synthesized(source, pairs, real, rule, state, ranks)
    if ranks.rank == 0:
        options: dict[str, Any] = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
        }
        print(report(options, rule, real, records, skipped))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    refuse_folders(args)
    with room_for("--filtered-mask-path", args.filtered_mask_path):
        ranks = Ranks()
        outputs = [
            (folder, option)
            for folder, option in ((args.filtered_mask_path, "--filtered-mask-path"), (args.save_loss, "--save-loss"))
            if folder
        ]
        for folder, option in outputs:
            check_writable(folder, option)
        with ranks.first_holds(*(only_writer(folder, option) for folder, option in outputs)):
            run_filter(args, ranks)


if __name__ == "__main__":
    cli.run(main)
