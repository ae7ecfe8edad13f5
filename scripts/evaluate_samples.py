r"""Says how good synthesized images are, without training anything.

Does a segmentor trained on real images find the mask in them (beside its score on real images that it was not trained
on), how far are they from their nearest training image (copies are flagged), which classes do they cover, how far does
the light of images of one mask follow their references (where --syn-img-path has its samples.jsonl), and FID and KID
where Inception weights are given.

  python -m scripts.evaluate_samples work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth \
      --real-img-path data/img_test --real-label-path data/label_test --syn-img-path out/images \
      --syn-mask-path data/label_train --train-img-path data/img_train --out-dir out/evaluation
"""

from __future__ import annotations

from collections.abc import Sequence

from cldm.synthesis.records import records
from common.command import note, read_options, run
from common.pairing import listed
from evaluation.samples import SamplesOptions, evaluate_samples


def main(words: Sequence[str] | None = None) -> None:
    """Parses, evaluates, tells."""
    options = read_options(SamplesOptions, __doc__ or "", words)
    report = evaluate_samples(options, records)
    for kind in ("real", "synthesized"):
        entry = report[kind]
        scores = "  ".join(f"{name} {entry[name]:.4f}" for name in ("OA", "mIoU", "mAcc"))
        print(f"{kind:12} {entry['images']:6} images  {scores}")
    copies = report["copies"]
    print(
        f"copies       {len(copies['images']):6} images nearer than {copies['limit']:g} to a training image (median "
        f"{copies['median_distance']:.4f}; of training images {copies['median_distance_of_training_images']:.4f})"
    )
    if followed := report.get("reference"):
        print(
            f"references   {followed['images']:6} images of {followed['masks']} masks follow {followed['slope']:.2f} "
            f"of their references' differences in light (correlation {followed['correlation']:.2f})"
        )
    if "FID" in report:
        shown = report.get("bands of FID and KID")
        of_bands = f"  (of bands {', '.join(map(str, shown))} as RGB)" if shown else ""
        print(f"FID {report['FID']:.2f}  KID {report['KID']:.4f} +- {report['KID_std']:.4f}{of_bands}")
    if report["skipped"]:
        note(f"{len(report['skipped'])} files left out: {listed(report['skipped'])}")
    print(f"{options.out_dir}: evaluation.json, evaluation.svg, nearest.jpg")


if __name__ == "__main__":
    run(main)
