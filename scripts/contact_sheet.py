r"""Shows synthesized images beside what they were made from: mask, reference, synthesized, and real image of the mask.

  python -m scripts.contact_sheet --samples synth --data-root DATA --items DATA/inference_set_items.json \
      --classes MBRSC --out sheet.png

Rows are spread evenly over the folder's records.
"""

from __future__ import annotations

from cldm.synthesis.contact_sheet import COLUMNS, ContactSheetOptions, write_contact_sheet
from common.command import read_options, run


def main() -> None:
    """Parses, draws, tells."""
    options = read_options(ContactSheetOptions, __doc__ or "")
    shown = write_contact_sheet(options)
    print(f"{options.out}: {', '.join(COLUMNS)} of {shown} samples")


if __name__ == "__main__":
    run(main)
