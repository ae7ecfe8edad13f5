r"""Distills a trained model: its student paints in 4 to 8 steps what it paints in 20 to 50, guidance included.

  python -m scripts.distill --teacher logs/my_run/checkpoints/last.ckpt --base logs/my_run/config.yaml --scale 2 \
      -n student --gpus 0,1,2,3
  bash inference.sh --config logs/student/config.yaml --ckpt logs/student/checkpoints/last.ckpt \
      --sampler lcm --steps 4 --scale 1 ...

It is a training: data, latents kept on disk, devices, precision, pictures and key=value are those of scripts.train,
and it goes on by --resume. Branches and U-Net train, or LoRA layers in their place (--lora).

Exit codes: 0 distilled, 1 the loss is not a number, 2 bad input, 143 saved and stopped by SIGTERM, 130 by Ctrl-C.
"""

from __future__ import annotations

from cldm.distillation.options import DistillOptions
from cldm.training.command_line import move_settings
from common import command as cli
from common.options import add_options


def main() -> int:
    """Parses, distills, tells."""
    parser = cli.parser(__doc__ or "")
    add_options(parser, DistillOptions)
    parsed = parser.parse_intermixed_args()
    move_settings(parsed)
    options = cli.taken(DistillOptions, parsed)
    from cldm.training.run import train  # torch takes seconds to import: after the options
    from ldm.training.exit_code import exit_code

    return exit_code(lambda: train(options))


if __name__ == "__main__":
    cli.run(main)
