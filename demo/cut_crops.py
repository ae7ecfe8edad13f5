"""Cuts a data set's images and masks into tiles, whole or a few: how the crops in demo/mbrsc were made, and are used.

  python demo/cut_crops.py --data-root MBRSC --out demo/mbrsc --scale 0.5 --most-varied 20 6 8 6   # these here
  python demo/cut_crops.py --data-root demo/mbrsc --out demo/output/data --side 128

Both folders have the layout of README, "Your own data": img_train and label_train, img_test and label_test, ref_img,
img_target and label_target. Images are scaled by the mean of what a pixel covers, masks keep their ids.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "test", "ref", "target")
FOLDERS = {"train": "img_train", "test": "img_test", "ref": "ref_img", "target": "img_target"}


def variety(image: Path, mask: Path | None) -> float:
    """Entropy of a mask's classes in bits; of an image without a mask, of its brightness."""
    values = np.asarray(Image.open(mask)) if mask else np.asarray(Image.open(image).convert("L")) // 32
    shares = np.bincount(values.ravel()) / values.size
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


def most_varied(images: list[Path], masks: Path | None, count: int) -> list[Path]:
    """So many images, in turn from each scene (``t1`` of ``t1_p001_y0000_x0000``) and of each its most varied first."""
    scenes = defaultdict(list)
    for image in images:
        scenes[image.stem.split("_")[0]].append(image)
    for scene in scenes.values():
        scene.sort(key=lambda image: -variety(image, masks and masks / f"{image.stem}.png"))
    in_turn = [image for row in zip_longest(*scenes.values()) for image in row if image is not None]
    return sorted(in_turn[:count])


def tiles(image: Image.Image, scale: float, side: int | None, resample: Image.Resampling) -> list[Image.Image]:
    """The tiles of an image row by row, from the upper left on; what is left over at the edges is not used."""
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample) if scale != 1 else image
    if side is None:
        return [image]
    places = [(x, y) for y in range(0, image.height - side + 1, side) for x in range(0, image.width - side + 1, side)]
    return [image.crop((x, y, x + side, y + side)) for x, y in places]


def main() -> None:
    """Writes all tiles, then the lists: one of each split, and masks of train with references in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="the data set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--scale", type=float, default=1.0, help="of the tiles' pixels, 1 or less")
    parser.add_argument("--side", type=int, help="of a tile in pixels after scaling; by default images stay whole")
    parser.add_argument("--most-varied", type=int, nargs=4, metavar=SPLITS, help="so many images of each, not all")
    options = parser.parse_args()
    root, out = options.data_root, options.out
    named: dict[str, list[str]] = {}
    for split, count in zip(SPLITS, options.most_varied or [None] * 4, strict=True):
        masks = None if split == "ref" else root / f"label_{split}"
        images = sorted((root / FOLDERS[split]).iterdir())
        named[split] = []
        (out / FOLDERS[split]).mkdir(parents=True, exist_ok=True)
        if masks:
            (out / masks.name).mkdir(exist_ok=True)
        for path in images if count is None else most_varied(images, masks, count):
            with Image.open(path) as image:
                cut = tiles(image, options.scale, options.side, Image.Resampling.BOX)
            names = [path.stem] if len(cut) == 1 else [f"{path.stem}_{number}" for number in range(len(cut))]
            for name, tile in zip(names, cut, strict=True):
                # a tile of a JPEG keeps its pixels: it is not compressed twice
                if options.side is None:
                    tile.save(out / FOLDERS[split] / f"{name}.jpg", quality=92)
                else:
                    tile.save(out / FOLDERS[split] / f"{name}.png")
            if masks:
                with Image.open(masks / f"{path.stem}.png") as mask:
                    cut = tiles(mask, options.scale, options.side, Image.Resampling.NEAREST)
                    for name, tile in zip(names, cut, strict=True):
                        tile.save(out / masks.name / f"{name}.png", optimize=True)
            named[split] += names
    shutil.copy(root / "classes.json", out)
    ending = "jpg" if options.side is None else "png"
    write_lists(out, named, ending)


def write_lists(out: Path, named: dict[str, list[str]], ending: str) -> None:
    """Writes ``<split>_set_items.json``, and ``inference_set_items.json``: each mask of train with a reference."""
    classes = json.loads((out / "classes.json").read_text())["classes"]

    def item(split: str, name: str) -> dict[str, str]:
        ids = np.unique(np.asarray(Image.open(out / f"label_{split}" / f"{name}.png")))
        seen = " ".join(classes[index] for index in ids if index < len(classes))
        source, target = f"label_{split}/{name}.png", f"{FOLDERS[split]}/{name}.{ending}"
        return {"source": source, "target": target, "prompt": f"a satellite image of {seen}"}

    items = {split: [item(split, name) for name in named[split]] for split in ("train", "test", "target")}
    references = named["ref"]
    stride = next(step for step in range(len(references) * 5 // 13, 0, -1) if np.gcd(step, len(references)) == 1)
    numbered = sorted(items["train"], key=lambda entry: entry["source"][-5:])  # the first tile of each image, then ...
    items["inference"] = [  # neighboring masks get references far apart
        {**entry, "ref_image": f"ref_img/{references[number * stride % len(references)]}.{ending}"}
        for number, entry in enumerate(numbered)
    ]
    for split, entries in items.items():
        (out / f"{split}_set_items.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


if __name__ == "__main__":
    main()
