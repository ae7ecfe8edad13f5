"""Makes a checkpoint and a YAML file of a folder that export_diffusers wrote: the same weights, tensor for tensor.

  python -m scripts.import_diffusers my_model imported

Then imported/model.yaml and imported/model.safetensors are a model as any: --config and --ckpt of synthesis.
"""

from __future__ import annotations

from cldm.diffusers_export.options import ImportOptions
from common.command import read_options, run


def main() -> None:
    """Parses, writes, tells what was read."""
    options = read_options(ImportOptions, __doc__ or "")
    from cldm.diffusers_export.importing import import_folder  # torch takes seconds to import: after the options

    for line in import_folder(options):
        print(line)


if __name__ == "__main__":
    run(main)
