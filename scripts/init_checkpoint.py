"""Makes the checkpoint that training starts from.

Stable Diffusion's weights (and a ControlNet's, if given) go to where they belong, and the U-Net's encoder is copied
into both control branches. What is new adds nothing yet: the start checkpoint predicts what Stable Diffusion predicts.

  python -m scripts.init_checkpoint --config configs/model/tisynth_v15.yaml --source v1-5-pruned.ckpt --out start.ckpt

A smaller trained model is a start, too, for more classes or another first stage; --grow names its own settings:

  python -m scripts.init_checkpoint --config mine.yaml --grow its.yaml --source its.safetensors --out start.ckpt
"""

from __future__ import annotations

import logging

from cldm.options import StartCheckpointOptions
from common.command import read_options, run


def main() -> None:
    """Parses, writes, tells what came from where."""
    options = read_options(StartCheckpointOptions, __doc__ or "")
    from cldm.start_checkpoint import write_start_checkpoint  # torch takes seconds to import: after the options

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for line in write_start_checkpoint(options):
        print(line)


if __name__ == "__main__":
    run(main)
