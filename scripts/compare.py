r"""Trains a segmentor on real images alone and with what may help, over several seeds, and says what did.

Arms have equal iterations and the same real images, and are tested on the same held-out images: real; with synthesized
images (joint; pretrain: on them first, on real ones then; synthesized: on them alone); with free tricks (fda,
color_transfer: the look of unlabeled references; copy_paste: of rare classes; self_training: the references as the real
arm's segmentor labels them); several with + between them. Writes comparison.json and comparison.html, one page with
words, tables, plots and a gallery. A stopped comparison goes on with the same command; arms, seeds or splits may be
added. Runs that are identical, or made from other files or settings than those of now, are refused. A training that was
stopped goes on to the weights of an unbroken one, as scripts/segmentor.py --help says.

  python -m scripts.compare configs/mmseg/tiny.py --data-root data --classes MBRSC --synthesized out/resampled \
      --seeds 5 --max-iters 1000 --splits test target --out-dir out/comparison \
      --syn-img-path out/images --mask-path data/label_train --filtered-mask-path out/filtered
With rivals, curves, and how long it takes:
  python -m scripts.compare ... --references data/ref_img --arms real fda color_transfer copy_paste self_training \
      joint pretrain joint+fda --amounts 0.5 1 2 --real-share 0.1 0.25 1 --plan
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cldm.synthesis.records import records
from common.command import read_options, run
from evaluation.compare import CompareOptions, compare_trainings
from evaluation.comparison import SCORES


def line(split: str, name: str, score: Mapping[str, Any], arm: str = "joint") -> str:
    """A score of real images alone and of an arm in percent, and their difference; see ``paired_difference``."""
    real, joint = (100 * score[kind]["mean"] for kind in ("baseline", "joint"))
    difference = {key: "?" if value is None else f"{100 * value:+.2f}" for key, value in score["difference"].items()}
    return (
        f"{split:8} {name:4}  real {real:6.2f}  {arm} {joint:6.2f}  difference {difference['mean']} "
        f"(95 %: {difference['low']} to {difference['high']})"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Parses, compares, tells."""
    options = read_options(CompareOptions, __doc__ or "", words)
    results = compare_trainings(options, records)
    for split, result in results.items():
        for arm, one in result["arms"].items():
            for name in SCORES:
                print(line(split, name, one["scores"][name], arm))
    if results:
        print(f"page: {options.out_dir / 'comparison.html'}")


if __name__ == "__main__":
    run(main)
