r"""Trains a first stage (AutoencoderKL) from nothing on folders of images, labeled or not.

  python -m scripts.train_vae --config configs/first_stage/mbrsc_f4.yaml --images data/img_train data/ref_img \
      --out runs/first_stage training.max_steps=20000

At the end, --out holds first_stage.safetensors (averaged weights under the published names) and first_stage.yaml (with
the measured scale_factor): put its fields into a model's YAML. scripts.evaluate_first_stage says how good it is.

Exit codes: 0 trained, 1 the loss is not a number, 2 bad input, 143 saved and stopped by SIGTERM, 130 by Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path

from common import command as cli
from common.options import add_options
from ldm.first_stage.options import TrainVaeOptions


def main() -> int:
    """Parses, trains, tells."""
    parser = cli.parser(__doc__ or "")
    add_options(parser, TrainVaeOptions)
    args = parser.parse_intermixed_args()
    args.settings = list(args.settings)
    for name in ("images", "val_images", "config"):  # options of several words take settings that follow them, too
        words = list(getattr(args, name))
        args.settings += [str(word) for word in words if "=" in str(word) and not Path(word).exists()]
        setattr(args, name, [word for word in words if str(word) not in args.settings])
    options = cli.taken(TrainVaeOptions, args)
    from ldm.first_stage.run import train  # torch takes seconds to import: after the options
    from ldm.training.exit_code import exit_code

    return exit_code(lambda: train(options))


if __name__ == "__main__":
    cli.run(main)
