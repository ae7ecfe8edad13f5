"""Halves a data set's images and masks, and holds some tiles of its training set back for choices (docs/proof.md).

  python -m demo.half_scale DATA OUT --held-out t6 --few 15

OUT/data is the whole data set: every img_* and label_* folder, ref_img, classes.json and the lists. OUT/choose is what
choices are made on: img_train and label_train without the tiles that are held out, which are its img_val and label_val.
OUT/few is the data set of somebody with few labels: all of OUT/data, but so many training images, drawn by their names
as --real-share of a training draws them.
An image's tile is what its name has before the first underscore. Images are means over 2 x 2 pixels, masks the upper
left of them, so that no class is made up. Started again, it makes what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from common.files import atomic_path
from common.images import read_image, read_mask
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files
from segmentation.dataset import nested


def halve(source: Path, target: Path) -> None:
    """Writes an image, or a mask (a folder label_*), at half its height and width; nothing where that is done."""
    if target.is_file():
        return
    with atomic_path(target) as path:
        if source.parent.name.startswith("label_"):
            Image.fromarray(read_mask(source)[::2, ::2]).save(path)
        else:
            Image.fromarray(read_image(source)).reduce(2).save(path, quality=95)


def link(source: Path, target: Path) -> None:
    """A hard link beside what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.link(source, target)


def keep_few(whole: Path, few: Path, count: int) -> None:
    """Links a data set that has this many of the training pairs, and the lists' lines of their masks alone."""
    images, masks = (whole / f"{kind}_train" for kind in ("img", "label"))
    drawn = nested([(path, masks / f"{path.stem}.png") for path in sorted(images.iterdir())], count)
    kept = {path.stem for path, _ in drawn}
    for path in few.glob("*_train/*"):  # of another count before
        if path.stem not in kept:
            path.unlink()
    for path in sorted(path for path in whole.glob("*/*") if path.is_file()):
        if not path.parent.name.endswith("_train") or path.stem in kept:
            link(path, few / path.parent.name / path.name)
    for path in sorted(whole.glob("*.json")):
        lines = path.read_text().splitlines(keepends=True)
        if path.name in ("train_set_items.json", "inference_set_items.json"):
            lines = [line for line in lines if line.strip() and Path(json.loads(line)["source"]).stem in kept]
        (few / path.name).write_text("".join(lines))


def main(words: Sequence[str] | None = None) -> None:
    """Halves, then splits the training set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set in the project's layout")
    parser.add_argument("out", type=Path, help="folder for data and choose")
    parser.add_argument("--held-out", nargs="+", required=True, help="tiles of the training set to choose on")
    parser.add_argument("--few", type=int, help="training images of OUT/few")
    options = parser.parse_args(words)
    if not {path.stem.split("_")[0] for path in (options.data / "img_train").iterdir()} & {*options.held_out}:
        parser.error(f"--held-out {' '.join(options.held_out)}: no training image's name begins so, up to the first _")
    whole, choose = options.out / "data", options.out / "choose"
    for folder in sorted(path for path in options.data.iterdir() if path.is_dir()):
        suffixes = MASK_SUFFIXES if folder.name.startswith("label_") else IMAGE_SUFFIXES
        for path in list_files(folder, suffixes, str(folder)).values():
            halve(path, whole / folder.name / path.name)
    for path in sorted(options.data.glob("*.json")):
        shutil.copy2(path, whole / path.name)
    choose.mkdir(parents=True, exist_ok=True)
    shutil.copy2(whole / "classes.json", choose / "classes.json")
    for path in choose.glob("*_*/*"):  # of other tiles before
        if path.parent.name.endswith("_val") != (path.stem.split("_")[0] in options.held_out):
            path.unlink()
    for kind in ("img", "label"):
        for path in sorted((whole / f"{kind}_train").iterdir()):
            split = "val" if path.stem.split("_")[0] in options.held_out else "train"
            link(path, choose / f"{kind}_{split}" / path.name)
    if options.few:
        keep_few(whole, options.out / "few", options.few)
    counts = [len(list((choose / f"img_{split}").glob("*"))) for split in ("train", "val")]
    print(f"{whole}; {choose}: {counts[0]} images to train on, {counts[1]} to choose on")


if __name__ == "__main__":
    main()
