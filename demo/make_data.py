"""Makes the demonstration's data set: land-cover scenes with exact masks, seen by two different sensors.

Layout and lists are those of real data sets (README, "Your own data"):

  img_train, label_train   the labeled domain, training
  img_test, label_test     the labeled domain, test
  ref_img                  the other domain, images alone
  img_target, label_target the other domain, for testing only

  python demo/make_data.py --out demo/output/data
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

CLASSES = ("water", "forest", "field", "building", "road")
PALETTE = ((40, 80, 220), (20, 110, 40), (200, 190, 60), (220, 60, 60), (150, 150, 150))

# What each sensor sees: mean color of each class (RGB, 0 to 1), and the strength of each class's texture.
COLORS = {
    "source": ((0.10, 0.25, 0.35), (0.15, 0.35, 0.15), (0.50, 0.55, 0.28), (0.85, 0.72, 0.68), (0.30, 0.30, 0.34)),
    "target": ((0.25, 0.20, 0.45), (0.45, 0.20, 0.15), (0.75, 0.50, 0.38), (0.90, 0.88, 0.92), (0.38, 0.28, 0.42)),
}
TEXTURE = (0.01, 0.06, 0.04, 0.03, 0.01)


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Noise (size, size) of zero mean and unit variance whose features are about ``scale`` pixels wide."""
    noise = gaussian_filter(rng.standard_normal((size, size)), scale, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def draw_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """Class ids (size, size) uint8: fields and forest, a lake or river, roads, and buildings beside them."""
    mask = np.where(smooth_noise(rng, size, size / 8) > 0.2, 1, 2).astype(np.uint8)
    mask[smooth_noise(rng, size, size / 6) > 1.0] = 0
    y, x = np.mgrid[:size, :size]
    for _ in range(rng.integers(0, 3)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * size
        distance = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle) - offset
        mask[np.abs(distance) < size / 40] = 4
    for _ in range(rng.integers(2, 10)):
        height, width = rng.integers(size // 12, size // 5, 2)
        top, left = rng.integers(0, size - height), rng.integers(0, size - width)
        if (mask[top : top + height, left : left + width] == 2).mean() > 0.6:
            mask[top : top + height, left : left + width] = 3
    return mask


def draw_image(rng: np.random.Generator, mask: np.ndarray, domain: str) -> np.ndarray:
    """An image (H, W, 3) uint8 of a mask: class colors, changed by season and light, with texture and sensor noise."""
    colors = np.array(COLORS[domain]) + rng.normal(0, 0.10, (len(CLASSES), 3))  # crops, soils, waters differ
    season = rng.normal(0, 0.13, 3) + rng.normal(0, 0.08)  # one shift of all colors an image
    size = len(mask)
    texture = np.array(TEXTURE)[mask] * (smooth_noise(rng, size, 1.0) + 0.5 * smooth_noise(rng, size, 3.0))
    image = colors[mask] + season + texture[..., None] + rng.normal(0, 0.01, (size, size, 3))
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def write_split(out: Path, domain: str, split: str, count: int, size: int, seed: int) -> list[dict[str, str]]:
    """Writes images and masks of one split; returns its items."""
    items = []
    for folder in (out / f"img_{split}", out / f"label_{split}"):
        folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng([seed, i, *split.encode()])
        mask = draw_mask(rng, size)
        name = f"{split}_{i:04d}"
        Image.fromarray(mask).save(out / f"label_{split}" / f"{name}.png")
        Image.fromarray(draw_image(rng, mask, domain)).save(out / f"img_{split}" / f"{name}.jpg", quality=95)
        shown = " ".join(CLASSES[c] for c in np.unique(mask))
        items.append(
            {
                "source": f"label_{split}/{name}.png",
                "target": f"img_{split}/{name}.jpg",
                "prompt": f"a satellite image of {shown}",
            }
        )
    return items


def main() -> None:
    """Makes the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=512, help="training scenes (512)")
    parser.add_argument("--test", type=int, default=64, help="test scenes of each domain (64)")
    parser.add_argument("--references", type=int, default=64, help="reference images of the other domain (64)")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (64)")
    parser.add_argument("--seed", type=int, default=0, help="of all scenes (0)")
    args = parser.parse_args()

    lists = {
        "train": write_split(args.out, "source", "train", args.train, args.size, args.seed),
        "test": write_split(args.out, "source", "test", args.test, args.size, args.seed),
        "target": write_split(args.out, "target", "target", args.test, args.size, args.seed),
    }
    references = args.out / "ref_img"
    references.mkdir(parents=True, exist_ok=True)
    for i in range(args.references):
        rng = np.random.default_rng([args.seed, i, 99])
        image = draw_image(rng, draw_mask(rng, args.size), "target")
        Image.fromarray(image).save(references / f"ref_{i:04d}.jpg", quality=95)
    lists["inference"] = [
        {**item, "ref_image": f"ref_img/ref_{i % args.references:04d}.jpg"} for i, item in enumerate(lists["train"])
    ]
    for name, items in lists.items():
        (args.out / f"{name}_set_items.json").write_text("".join(json.dumps(item) + "\n" for item in items))
    table = {"classes": CLASSES, "palette": PALETTE, "ignore_index": 255}
    (args.out / "classes.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{args.out}: {', '.join(f'{len(items)} {name}' for name, items in lists.items())} items of {args.size} px")


if __name__ == "__main__":
    main()
