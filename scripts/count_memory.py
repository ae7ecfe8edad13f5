"""Counts the memory that training and synthesis take, by precision, batch, gradient checkpointing and LoRA.

No GPU is needed, nor memory for the model: the work runs on tensors without numbers, see ``cldm.benchmark.memory``.

  python -m scripts.count_memory --config configs/model/tisynth_v15.yaml --size 512 --batch-size 1 4
"""

from __future__ import annotations

from cldm.options import CountMemoryOptions
from common.command import read_options, run


def main() -> None:
    """Parses, counts, prints a Markdown table in GiB."""
    options = read_options(CountMemoryOptions, __doc__ or "")
    from cldm.benchmark.memory_table import memory_table  # torch takes seconds to import: after the options

    for line in memory_table(options):
        print(line, flush=True)


if __name__ == "__main__":
    run(main)
