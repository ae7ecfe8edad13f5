"""Writes a model as a folder that diffusers loads without this project.

  python -m scripts.export_diffusers logs/my_run/config.yaml logs/my_run/checkpoints/last.ckpt my_model \
      --license cc-by-4.0 --data "MBRSC aerial images of Dubai" --scores comparison/comparison.json

  DiffusionPipeline.from_pretrained("my_model", trust_remote_code=True)

VAE, text encoder, tokenizer, scheduler and, where its hint allows, the mask branch are diffusers' own; the files of
the U-Net and the reference branch travel in the folder. docs/diffusers.md says more.
"""

from __future__ import annotations

from cldm.diffusers_export.options import ExportOptions
from common.command import read_options, run


def main() -> None:
    """Parses, writes, tells what became of each part."""
    options = read_options(ExportOptions, __doc__ or "")
    from cldm.diffusers_export.export import export  # torch takes seconds to import: after the options

    for line in export(options):
        print(line)


if __name__ == "__main__":
    run(main)
