import numpy as np
from PIL import Image


def save_pair(rng, image, mask, size, num_classes):
    image.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    ids = rng.integers(0, num_classes, size).astype(np.uint8)
    ids[rng.random(size) < 0.1] = 255
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    Image.fromarray(ids).save(mask)


def numpy_loss(chain, image, mask):
    """Cross-entropy (H, W) in float64 by the formula, without mmseg and torch."""
    x = (np.array(Image.open(image), dtype=np.float64) - [120, 110, 100]) / [60, 55, 50]
    logits = x @ chain.weight.astype(np.float64).T + chain.bias
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    ids = np.minimum(mask, chain.num_classes - 1).astype(int)  # the loss where the mask is 255 is not used
    return -np.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]


def numpy_rule(chain, margin):
    """The filtered masks by name, and the mean losses, one pixel at a time."""
    total, pixels = np.zeros(chain.num_classes), np.zeros(chain.num_classes)
    for path in sorted((chain.root / "label_train").iterdir()):
        mask = np.array(Image.open(path))
        loss = numpy_loss(chain, chain.root / "img_train" / path.name, mask)
        for c, value in zip(mask.ravel(), loss.ravel(), strict=True):
            if c != 255:
                total[c] += value
                pixels[c] += 1
    filtered = {}
    for image in sorted((chain.root / "syn").iterdir()):
        mask = np.array(Image.open(chain.root / "label_train" / f"{image.stem.split('_seed_')[0]}.png"))
        loss = numpy_loss(chain, image, mask)
        result = mask.copy()
        for index in np.ndindex(mask.shape):
            c = mask[index]
            if c != 255 and loss[index] > margin * total[c] / pixels[c]:
                result[index] = 255
        filtered[image.stem] = result
    return filtered, total / pixels


def compare_options(chain, *more):
    return [
        chain.config,
        "--synthesized",
        chain.root / "synth",
        "--classes",
        chain.table,
        "--data-root",
        chain.root,
        "--seeds",
        2,
        "--max-iters",
        2,
        "--out-dir",
        chain.root / "out",
        *more,
    ]


COMMON = ["--num-workers", 0, "--device", "cpu"]


def filter_options(chain, *more, out="out"):
    return [
        chain.config,
        chain.weights,
        "--real-img-path",
        chain.root / "img_train",
        "--real-label-path",
        chain.root / "label_train",
        "--syn-img-path",
        chain.root / "syn",
        "--syn-mask-path",
        chain.root / "label_train",
        "--filtered-mask-path",
        chain.root / out,
        *COMMON,
        *more,
    ]


def loss_options(chain, *more, out="again"):
    """Of a filter that reads what another one kept in ``loss``."""
    masks = ["--syn-mask-path", chain.root / "label_train", "--filtered-mask-path", chain.root / out]
    return ["--from-loss", chain.root / "loss", *masks, *more]


def evaluate_options(chain, *more, out="eval"):
    return [
        chain.config,
        chain.weights,
        "--real-img-path",
        chain.root / "img_test",
        "--real-label-path",
        chain.root / "label_test",
        "--syn-img-path",
        chain.root / "syn",
        "--syn-mask-path",
        chain.root / "label_train",
        "--train-img-path",
        chain.root / "img_train",
        "--out-dir",
        chain.root / out,
        *COMMON,
        *more,
    ]
