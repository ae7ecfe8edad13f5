r"""Trains TISynth: paints images from masks, references and texts.

  bash train.sh --base configs/train/tisynth.yaml --config-model configs/model/tisynth_v15.yaml -n my_run \
      --data-root DATA --train-txt-file DATA/train_set_items.json --val-txt-file DATA/test_set_items.json \
      --pretrain-path controlnet1.5.ckpt --gpus 0,1,2,3

Any value of the configuration can be set by key=value, or as an option:
  data.params.batch_size=4 lightning.trainer.max_steps=50000 --data.params.num_workers 2
Options of Lightning's trainer may be written by their names alone, as published: --max_steps 50000 --accelerator gpu

Exit codes: 0 trained, 1 the loss is not a number, 2 bad input, 143 saved and stopped by SIGTERM, 130 by Ctrl-C.
"""

from __future__ import annotations

import os
import sys

from cldm.training.command_line import read_training_line
from common.command import parser, run


def main() -> int:
    """Parses, tells what has no effect, and trains."""
    options, notes = read_training_line(parser(__doc__ or ""), sys.argv[1:])
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # Lightning starts this command again for each further GPU
        for note in notes:
            print(note)
    from cldm.training.run import train  # torch takes seconds to import: after the options
    from ldm.training.exit_code import exit_code

    return exit_code(lambda: train(options))


if __name__ == "__main__":
    run(main)
