"""Sets the pixels of synthesised images to 255 that a segmentor trained on real images finds wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import distributed
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_path, check_writable, digest, inside, room_for, write_json
from common.images import read_mask
from common.pairing import MASK_SUFFIXES, Pair, list_files, listed, pair_files
from post_processing import filtering
from post_processing.filter_report import filter_figure, filter_statistics
from post_processing.records import RecordWriter, read_records
from scripts import cli
from scripts.cli import integer
from scripts.pairs import PAIRS, find_pairs, pick_device
from segmentation.config import add_cfg_options, load_config, set_data
from segmentation.inference import load_segmentor, pixel_losses, segment, test_steps

DESCRIPTION = """Filters the masks of synthesised images (FreeMask's rule): the cross-entropy of a segmentor trained on
real images, averaged for each class over all real pixels, says what is normal; a synthesised pixel whose loss exceeds
margin x its class's mean becomes 255. Synthesised images are named <mask name>_seed_<seed>.jpg or .png.

  python -m scripts.filter work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth \\
      --real-img-path data/img_train --real-label-path data/label_train \\
      --syn-img-path out/images --syn-mask-path data/label_train --filtered-mask-path out/filtered
Another margin, from losses that --save-loss wrote, without the segmentor:
  python -m scripts.filter --from-loss out/loss --syn-mask-path data/label_train --filtered-mask-path out/filtered_2 \\
      --tolerance-margin 2
Several GPUs: torchrun --nproc-per-node 4 -m scripts.filter ... A stopped run goes on with the same command."""

HISTOGRAM_IMAGES = 500  # images of each kind whose losses enter the figure
STATE = ".filter"  # below --filtered-mask-path: the settings, and what is done


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; refused where options are missing or contradict each other."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("config", nargs="?", help="mmseg config of the segmentor trained on real images")
    parser.add_argument("checkpoint", nargs="?", help="its weights")
    parser.add_argument("--real-img-path", type=Path, help="real images")
    parser.add_argument("--real-label-path", "--real-mask-path", type=Path, help="their masks, of the same names")
    parser.add_argument("--syn-img-path", type=Path, help="synthesised images")
    parser.add_argument("--syn-mask-path", type=Path, required=True, help="masks that they were synthesised from")
    parser.add_argument("--filtered-mask-path", type=Path, required=True, help="folder for filtered masks and report")
    parser.add_argument("--classes", help="class table, by name or path to a classes.json (default: the config's)")
    parser.add_argument("--tolerance-margin", type=float, default=1.25, help="limit = margin x mean loss of the class")
    parser.add_argument("--unseen-class", choices=("ignore", "keep"), default="ignore",
                        help="pixels of a class that no real image shows: set to 255, or kept")
    parser.add_argument("--save-loss", type=Path, help="folder for each pixel's loss (float16), for --from-loss")
    parser.add_argument("--from-loss", type=Path, help="folder that --save-loss wrote; replaces segmentor and images")
    parser.add_argument("--skip-invalid", action="store_true", help="leave out files that are unpaired or damaged")
    parser.add_argument("--batch_size", "--batch-size", type=integer(1), default=8, help="images a batch, of one size")
    parser.add_argument("--num_workers", "--num-workers", type=integer(0), default=min(4, os.cpu_count() or 1),
                        help="processes that read images")
    add_cfg_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    needed = {"CONFIG": args.config, "CHECKPOINT": args.checkpoint, "--real-img-path": args.real_img_path,
              "--real-label-path": args.real_label_path, "--syn-img-path": args.syn_img_path}
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


class Ranks:
    """The processes that torchrun started; one where it started none. They meet through messages on the CPU."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        if self.size > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=timedelta(days=7))  # one may be done long before another

    def share(self, items: list[Pair]) -> list[Pair]:
        """This process's part."""
        return items[self.rank :: self.size]

    def wait(self) -> None:
        """Returns once all processes have come here."""
        if self.size > 1:
            distributed.barrier()

    def once(self, work: Callable[[], Any]) -> Any:
        """The first process's result of ``work``; bad input found there ends the others silently."""
        if self.size == 1:
            return work()
        result: list[Any] = [None, False]
        error = None
        if self.rank == 0:
            try:
                result[0] = work()
            except ValueError as caught:
                error, result[1] = caught, True
        distributed.broadcast_object_list(result)
        if error:
            raise error
        if result[1]:
            sys.exit(2)
        return result[0]


def open_state(out: Path, settings: dict[str, Any]) -> Path:
    """The folder that says what is done; refused where it belongs to a run with other settings."""
    for left_over in out.glob(".*.tmp.*"):  # of a killed run
        left_over.unlink()
    path = out / STATE / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        found = json.loads(path.read_text())
        if changed := [key for key in settings if found.get(key) != settings[key]]:
            raise InputError(f"--filtered-mask-path {out}: holds masks filtered with another {', '.join(changed)}; "
                             "name another folder or remove this one")
    else:
        write_json(settings, path)
    return path.parent


def in_figure(items: list[Pair]) -> set[str]:
    """Names of evenly spread images, whose losses enter the figure."""
    step = -(-len(items) // HISTOGRAM_IMAGES)
    return {pair.name for pair in items[::step]}


Losses = Callable[[list[Pair]], Iterable[tuple[Pair, np.ndarray, np.ndarray]]]


def measure_real(losses: Losses, pairs: list[Pair], num_classes: int, state: Path, ranks: Ranks) -> dict[str, Any]:
    """Mean loss of each class over all real pixels, pixels of each class, and the losses' distribution."""
    done, shown, writer = read_records(state, "real"), in_figure(pairs), RecordWriter(state, "real", ranks.rank)
    ranks.wait()  # everybody has read before anybody writes
    todo = [pair for pair in ranks.share(pairs) if pair.name not in done]
    quiet = ranks.rank > 0 or not todo
    for pair, loss, mask in tqdm(losses(todo), "real", len(todo), unit="image", disable=quiet):
        if not np.isfinite(loss).all():
            raise InputError(f"{pair.image}: the segmentor's loss is not finite here; are its weights sound?")
        histogram = filtering.loss_histogram(loss, mask, num_classes).tolist() if pair.name in shown else None
        writer.write({"name": pair.name, "sums": filtering.class_sums(loss, mask, num_classes).tolist(),
                      "pixels": filtering.class_counts(mask, num_classes).tolist(), "histogram": histogram})
    ranks.wait()
    done = read_records(state, "real")
    records = [done[pair.name] for pair in pairs]
    pixels = np.array([record["pixels"] for record in records])
    mean = filtering.mean_loss([record["sums"] for record in records], pixels)
    return {"mean_loss": mean, "pixels": pixels.sum(axis=0), "histogram": total_histogram(records)}


def stamp(pair: Pair) -> list[int]:
    """Sizes and times of a pair's files: another image or mask of the same name has others."""
    files = (pair.image.stat(), pair.mask.stat())
    return [value for file in files for value in (file.st_size, file.st_mtime_ns)]


def total_histogram(records: Iterable[dict[str, Any]]) -> np.ndarray:
    """Sum of the records' histograms (C, bins)."""
    return np.sum([record["histogram"] for record in records if record["histogram"]], axis=0)


def filter_synthesised(losses: Losses, pairs: list[Pair], limits: np.ndarray, args: argparse.Namespace, state: Path,
                       ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Writes the filtered masks; returns total and kept pixels of each class, by image name."""
    def finished(pair: Pair) -> bool:
        saved = not args.save_loss or (args.save_loss / f"{pair.name}.npy").is_file()
        same = done.get(pair.name, {}).get("files") == stamp(pair)  # an image made again is filtered again
        return same and saved and (args.filtered_mask_path / f"{pair.name}.png").is_file()

    done, shown, writer = read_records(state, "syn"), in_figure(pairs), RecordWriter(state, "syn", ranks.rank)
    ranks.wait()
    todo = [pair for pair in ranks.share(pairs) if not finished(pair)]
    quiet = ranks.rank > 0 or not todo
    for pair, loss, mask in tqdm(losses(todo), "synthesised", len(todo), unit="image", disable=quiet):
        filtered = filtering.filter_mask(loss, mask, limits)
        with atomic_path(args.filtered_mask_path / f"{pair.name}.png") as path:
            Image.fromarray(filtered).save(path)
        if args.save_loss:
            with atomic_path(args.save_loss / f"{pair.name}.npy") as path:
                np.save(path, loss.astype(np.float16))
        histogram = filtering.loss_histogram(loss, mask, len(limits)).tolist() if pair.name in shown else None
        total, kept = (filtering.class_counts(ids, len(limits)).tolist() for ids in (mask, filtered))
        writer.write({"name": pair.name, "files": stamp(pair), "total": total, "kept": kept, "histogram": histogram})
    ranks.wait()
    done = read_records(state, "syn")
    return {pair.name: done[pair.name] for pair in pairs}


def saved_losses(folder: Path, pairs: list[Pair]) -> Iterator[tuple[Pair, np.ndarray, np.ndarray]]:
    """Pairs with the losses that --save-loss wrote, float32 (H, W), and their masks."""
    for pair in pairs:
        mask, loss = read_mask(pair.mask), np.load(folder / f"{pair.name}.npy", allow_pickle=False)
        if loss.shape != mask.shape:
            raise InputError(f"{folder / pair.name}.npy: loss of {loss.shape}, but {pair.mask} is {mask.shape}")
        yield pair, loss.astype(np.float32), mask


def report(args: argparse.Namespace, classes: list[str], real: dict[str, Any], limits: np.ndarray,
           records: dict[str, dict[str, Any]], skipped: list[str]) -> None:
    """Writes filter_stats.json and filter_stats.svg."""
    out = args.filtered_mask_path
    statistics = filter_statistics(classes, real, limits, records)
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    write_json({"options": options, "skipped": skipped, **statistics}, out / "filter_stats.json", indent=None)
    with atomic_path(out / "filter_stats.svg") as path:
        filter_figure(path, statistics["per_class"], np.asarray(real["histogram"]),
                      total_histogram(records.values()), args.tolerance_margin)
    kept, dropped = (sum(values[key] for values in statistics["per_class"].values()) for key in ("kept", "dropped"))
    print(f"{len(records)} masks in {out}, {100 * kept / max(kept + dropped, 1):.1f} % of their pixels kept; "
          "filter_stats.json and filter_stats.svg say more")


def real_from_segmentor(args: argparse.Namespace, ranks: Ranks) -> tuple[Losses, PAIRS, list[str], dict[str, Any], Path,
                                                                         list[str]]:
    """Everything that needs the segmentor: how losses are made, the pairs, and the real images' means."""
    config = load_config(args.config, args.cfg_options, args.trust_config)
    set_data(config, classes=args.classes)
    model = load_segmentor(config, args.checkpoint, pick_device(args.device))
    pairs, skipped = ranks.once(lambda: find_pairs(args, model.num_classes))
    real_files = [(pair.name, stamp(pair)) for pair in pairs["real"]]
    settings = {
        "config": digest(config.model.to_dict(), test_steps(config)), "checkpoint": digest(Path(args.checkpoint)),
        "real images": digest(real_files), "--tolerance-margin": args.tolerance_margin,
        "--unseen-class": args.unseen_class,
    }
    state = ranks.once(lambda: open_state(args.filtered_mask_path, settings))

    def losses(items: list[Pair]) -> Iterator[tuple[Pair, np.ndarray, np.ndarray]]:
        files = [(pair.image, pair.mask) for pair in items]
        for index, logits, mask in segment(model, config, files, read_mask, args.batch_size, args.num_workers):
            yield items[index], pixel_losses(logits, mask), mask

    real = measure_real(losses, pairs["real"], model.num_classes, state, ranks)
    return losses, pairs, model.class_names, real, state, skipped


def real_from_losses(args: argparse.Namespace, ranks: Ranks) -> tuple[Losses, PAIRS, list[str], dict[str, Any], Path,
                                                                      list[str]]:
    """The same from a folder that --save-loss wrote."""
    folder = args.from_loss
    path = folder / "real_loss.json"
    if not path.is_file():
        raise InputError(f"--from-loss {folder}: no real_loss.json; name a folder that --save-loss finished")
    real = json.loads(path.read_text())
    real["mean_loss"] = np.array([np.nan if value is None else value for value in real["mean_loss"]])
    images = list_files(folder, (".npy",), "--from-loss")
    masks = list_files(args.syn_mask_path, MASK_SUFFIXES, "--syn-mask-path")
    pairs, skipped = pair_files(images, masks, ("--from-loss", "--syn-mask-path"), args.skip_invalid)
    settings = {"--from-loss": digest(path), "--tolerance-margin": args.tolerance_margin,
                "--unseen-class": args.unseen_class}
    state = ranks.once(lambda: open_state(args.filtered_mask_path, settings))
    return lambda items: saved_losses(folder, items), {"syn": pairs}, real["classes"], real, state, skipped


def run_filter(args: argparse.Namespace) -> None:
    """Measures the real images, filters the synthesised ones, reports."""
    ranks = Ranks()
    for folder in (args.real_img_path, args.real_label_path, args.syn_img_path, args.syn_mask_path, args.from_loss):
        if inside(args.filtered_mask_path, folder):
            raise InputError(f"--filtered-mask-path {args.filtered_mask_path}: lies inside {folder}; name another one")
    check_writable(args.filtered_mask_path, "--filtered-mask-path")
    if args.save_loss:
        check_writable(args.save_loss, "--save-loss")
    prepare = real_from_losses if args.from_loss else real_from_segmentor
    losses, pairs, classes, real, state, skipped = prepare(args, ranks)
    unseen = [name for name, pixels in zip(classes, real["pixels"], strict=True) if not pixels]
    if ranks.rank == 0:
        if skipped:
            print(f"{len(skipped)} files left out: {listed(skipped)}", file=sys.stderr)
        if unseen:
            fate = "become 255" if args.unseen_class == "ignore" else "are kept"
            print(f"warning: no real image shows {', '.join(unseen)}; their synthesised pixels {fate} (--unseen-class)",
                  file=sys.stderr)
    limits = filtering.thresholds(real["mean_loss"], args.tolerance_margin, args.unseen_class)
    records = filter_synthesised(losses, pairs["syn"], limits, args, state, ranks)
    if ranks.rank == 0:
        if args.save_loss:
            means = [None if np.isnan(value) else value for value in real["mean_loss"].tolist()]
            write_json({"classes": classes, "mean_loss": means, "pixels": np.asarray(real["pixels"]).tolist(),
                        "histogram": np.asarray(real["histogram"]).tolist()}, args.save_loss / "real_loss.json")
        report(args, classes, real, limits, records, skipped)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    with room_for("--filtered-mask-path", args.filtered_mask_path):
        run_filter(args)


if __name__ == "__main__":
    cli.run(main)
