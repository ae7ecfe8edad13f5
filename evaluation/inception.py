"""FID and KID between two folders of images, on Inception features whose weights the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.models import inception_v3
from torchvision.transforms import v2

from common.bands import Bands, read_picture
from common.errors import InputError
from common.schema import one_line
from common.weights import read_tensors, refuse_not_finite

PREPARE = v2.Compose(
    [
        v2.PILToTensor(),
        v2.Resize((299, 299), antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def inception_features(path: Path) -> nn.Module:
    """torchvision's Inception v3 up to its 2,048 pooled features.

    FID depends on the network: values compare only with others made from the same weights.

    Raises:
        InputError: no such file, or not these weights.
    """
    try:
        weights = read_tensors(path)
        refuse_not_finite(weights, path, "take another file")
    except InputError as error:
        raise InputError(f"‹inception_weights› {error}") from error
    try:
        weights = {key: value for key, value in weights.items() if not key.startswith(("AuxLogits.", "fc."))}
        model: nn.Module = inception_v3(weights=None, aux_logits=False, init_weights=False)
        model.fc = nn.Identity()
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = one_line(error)
        raise InputError(f"‹inception_weights› {path}: not weights of torchvision's inception_v3 ({reason})") from error
    model.num_features = 2048  # type: ignore[assignment]
    model.eval()
    return model


@torch.inference_mode()
def distances(
    features: nn.Module,
    real: Sequence[Path],
    synthesized: Sequence[Path],
    device: str = "cpu",
    batch_size: int = 16,
    bands: Bands | None = None,
) -> dict[str, float]:
    """FID, and KID's mean and standard deviation over subsets.

    The network looks at RGB: of other bands, at the three that are stated for pictures, as bytes of their ranges.

    Args:
        features: prepared images (N, 3, 299, 299) -> (N, num_features).
        real: image files.
        synthesized: image files.
        device: where to compute.
        batch_size: images at once.
        bands: what is stated of the images'; None for three of 8 bits.
    """
    features = features.to(device)
    passed_on = nn.Identity()  # both metrics get the features, computed once
    passed_on.num_features = features.num_features
    fid = FrechetInceptionDistance(feature=passed_on, normalize=True)
    kid = KernelInceptionDistance(feature=passed_on, normalize=True, subset_size=min(1000, len(real), len(synthesized)))
    for files, is_real in ((real, True), (synthesized, False)):
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            images = torch.stack([PREPARE(Image.fromarray(read_picture(path, bands))) for path in part])
            values = features(images.to(device)).cpu()
            for metric in (fid, kid):
                metric.update(values, real=is_real)
    mean, spread = kid.compute()
    return {"FID": float(fid.compute()), "KID": float(mean), "KID_std": float(spread)}
