r"""Synthesizes images: one an item of the list and seed, after the item's mask, reference image and prompt.

  bash inference.sh --config configs/model/tisynth_v15.yaml --ckpt GID_model.ckpt --data-root DATA \
      --train-txt-file DATA/inference_set_items.json --outdir synth --seed 0 --gpus 0,1

Writes <mask name>_seed_<seed>.jpg and samples.jsonl, which says what each image was made of. Started again, it makes
what is missing; images that were made of something else are refused by name, or made again with --remake.

A segmentor trained on real images can guide the first steps (--rectify), or choose among several images of a seed:
  bash inference.sh ... --rectify work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth
  bash inference.sh ... --judge work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth --candidates 4
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from cldm.synthesis.command_line import PublishedSynthesisOptions, without_published_names
from cldm.synthesis.options import SynthesisOptions
from cldm.synthesis.saving_options import PRESETS
from common.command import read_options, run
from common.config_options import ConfigOptions

if TYPE_CHECKING:
    from cldm.synthesis.judging import Judge, Judges


def judges_of(options: SynthesisOptions) -> Judges:
    """The segmentors that the options name; one that guides and chooses is opened once.

    Raises:
        InputError: one of them cannot be used.
    """
    from cldm.synthesis.judging import Judges

    if options.rectify is None and options.judge is None:
        return Judges()
    from segmentation.judge import open_judge  # mmseg takes seconds to import

    settings = ConfigOptions(trust_config=options.trust_config)
    opened: dict[tuple[str, ...], Judge] = {}

    def segmentor(named: tuple[str, ...] | None) -> Judge | None:
        if named is not None and named not in opened:
            config, weights = named
            opened[named] = open_judge(config, weights, settings, options.classes)
        return None if named is None else opened[named]

    chosen_by = (options.judge or options.rectify) if options.chooses else None
    return Judges(segmentor(options.rectify), segmentor(chosen_by))


def main() -> None:
    """Parses, tells what has no effect, and makes what is missing."""
    given = read_options(PublishedSynthesisOptions, __doc__ or "", presets=PRESETS)
    options, notes = without_published_names(given)
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0  # Lightning starts this command again for each further GPU
    for line in notes if first else []:
        print(line)
    from cldm.synthesis.folder import synthesize_folder  # torch takes seconds to import: after the options

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = synthesize_folder(options, lambda: judges_of(options))
    if made and first:
        print(f"{made} images written to {options.outdir}")


if __name__ == "__main__":
    run(main)
