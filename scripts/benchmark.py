r"""Measures speed, in one run with a peer and with each saving switched off: numbers as ratios.

  python -m scripts.benchmark --config configs/model/tisynth_v15.yaml --size 512 --precision bf16 --out bench.json

Weights are random. The peer is diffusers' StableDiffusionControlNetPipeline with two ControlNets of the same geometry,
at the same size, steps, precision and guidance. Timed are create_model, sample, p_losses, and whole images and training
steps. --flops counts instead what an image takes by each preset; --parity compares lower precisions with 32 bit.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from cldm.options import BenchmarkOptions
from common.command import read_options, run
from common.files import atomic_path, check_writable


def main() -> None:
    """Parses, measures, prints and writes."""
    options = read_options(BenchmarkOptions, __doc__ or "")
    if options.out:
        check_writable(options.out.parent, "‹out›")
    logging.basicConfig(level=logging.WARNING)
    # torch takes seconds to import: after the options
    if options.flops:
        from cldm.benchmark.cost import flops_table

        print("\n".join(flops_table(options)))
        return

    def keep(result: dict[str, Any]) -> None:
        if options.out:
            with atomic_path(options.out) as path:
                path.write_text(json.dumps(result, indent=1) + "\n")

    if options.parity:
        from cldm.benchmark.parity import parity, parity_table

        result, told = (found := parity(options)), parity_table(found)
    else:
        from cldm.benchmark.measure import measure, table

        result, told = (found := measure(options, keep)), table(found)
    print(told)
    keep(result)


if __name__ == "__main__":
    run(main)
