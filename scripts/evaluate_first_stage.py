r"""Says what images lose in a first stage's round trip: PSNR, SSIM and, with a segmentor, what it still recognizes.

  python -m scripts.evaluate_first_stage --config runs/first_stage/first_stage.yaml \
      --weights runs/first_stage/first_stage.safetensors --images data/img_test --masks data/label_test \
      --segmentor work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth --out runs/first_stage/scores.json

--config is any YAML file that names a first stage: a model's own (--weights: its checkpoint), or one with SpaceToDepth
(no weights). The mIoU on reconstructions is the ceiling of all that is painted through the first stage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import command as cli
from common.config_options import ConfigOptions
from common.pairing import Pair
from common.sound_pairs import sound_pairs
from evaluation.agreement import agreement
from ldm.first_stage.options import FirstStageScoresOptions


def recognizer(options: FirstStageScoresOptions) -> Callable[[Path], dict[str, Any]]:
    """What says, of a folder of reconstructions, what the segmentor finds in them and in the real images.

    Raises:
        InputError: a segmentor that cannot be used, or images without masks.
    """
    from segmentation.inference import open_segmentor  # takes seconds to import

    assert options.segmentor is not None and options.masks is not None
    settings = ConfigOptions(trust_config=options.trust_config)
    config, weights = options.segmentor
    judge = open_segmentor(config, weights, settings, options.classes, options.device)
    named = "‹images›", "‹masks›"
    found = sound_pairs(options.images, options.masks, named, judge.labels(), same_size=True, look=judge.look)
    suffix = ".png" if judge.bands is None else ".tif"

    def recognized(folder: Path) -> dict[str, Any]:
        made = [Pair(pair.name, folder / f"{pair.name}{suffix}", pair.mask) for pair in found.pairs]
        real, after = (
            agreement(judge, files, title, num_workers=options.num_workers).report
            for title, files in (("real", found.pairs), ("made", made))
        )
        return {"real": real, "reconstructed": after, "lost_mIoU": real["mIoU"] - after["mIoU"]}

    return recognized


def main() -> None:
    """Parses, judges, tells."""
    options = cli.read_options(FirstStageScoresOptions, __doc__ or "")
    from ldm.first_stage.evaluation import evaluate  # torch takes seconds to import: after the options

    report = evaluate(options, None if options.segmentor is None else recognizer(options))
    psnr = "nothing lost" if report["PSNR"] is None else f"PSNR {report['PSNR']:.2f} dB"
    print(f"{report['images']} images: {psnr}, SSIM {report['SSIM']:.4f}")
    if judged := report.get("segmentor"):
        for kind in ("real", "reconstructed"):
            classes = "  ".join(f"{name} {value['IoU'] or 0:.3f}" for name, value in judged[kind]["classes"].items())
            print(f"{kind:14} mIoU {judged[kind]['mIoU']:.4f}  {classes}")
    print(options.out)


if __name__ == "__main__":
    cli.run(main)
