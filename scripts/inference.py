r"""Synthesizes images: one an item of the list and seed, after the item's mask, reference image and prompt.

  bash inference.sh --config configs/model/tisynth_v15.yaml --ckpt GID_model.ckpt --data-root DATA \
      --train-txt-file DATA/inference_set_items.json --outdir synth --seed 0 --gpus 0,1

Writes <mask name>_seed_<seed>.jpg and samples.jsonl, which says what each image was made of. Started again, it makes
what is missing; images that were made of something else are refused by name, or made again with --remake.
"""

from __future__ import annotations

import logging
import os

from cldm.synthesis.command_line import PublishedSynthesisOptions, without_published_names
from common.command import read_options, run


def main() -> None:
    """Parses, tells what has no effect, and makes what is missing."""
    options, notes = without_published_names(read_options(PublishedSynthesisOptions, __doc__ or ""))
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0  # Lightning starts this command again for each further GPU
    for line in notes if first else []:
        print(line)
    from cldm.synthesis.folder import synthesize_folder  # torch takes seconds to import: after the options

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = synthesize_folder(options)
    if made and first:
        print(f"{made} images written to {options.outdir}")


if __name__ == "__main__":
    run(main)
