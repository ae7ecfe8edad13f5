"""Converts dVAE weights to .safetensors (or .pth), once.

  python -m scripts.convert_dvae --encoder encoder.pkl --decoder decoder.pkl --out dvae.safetensors
  python -m scripts.convert_dvae --checkpoint gss-ff.pth --out dvae.safetensors

encoder.pkl and decoder.pkl are DALL-E's published files, pickled modules: only their tensors are read, code is refused.
From a GSS checkpoint (or a state dict of a dVAE) its dVAE is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from gss.conversion import ConvertOptions, convert_dvae


def main(words: Sequence[str] | None = None) -> None:
    """Parses, converts, tells."""
    options = read_options(ConvertOptions, __doc__ or "", words)
    print(f"{convert_dvae(options)} tensors written to {options.out}")


if __name__ == "__main__":
    run(main)
