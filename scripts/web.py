r"""A page in the browser: paint a mask, choose a reference, see the image grow, and what the filter would drop of it.

  python -m scripts.web
  python -m scripts.web --config logs/my_run/config.yaml --model logs/my_run/checkpoints/last.ckpt \
      --classes DATA/classes.json --references DATA/ref_img --masks DATA/label_test \
      --segmentor real/tiny.py real/iter_1000.pth --real-img-path DATA/img_train --real-label-path DATA/label_train

Without --config and --model, the model in the box paints (demo/mbrsc). The page is on this machine alone (--host),
fetches nothing, and tells nobody anything. Its images are those of the command `bash inference.sh`, which it shows.
Needs gradio: pip install '.[demo]'.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from web.options import WebOptions


def main(words: Sequence[str] | None = None) -> None:
    """Parses, opens, serves."""
    options = read_options(WebOptions, __doc__ or "", words)
    from web.serve import serve

    serve(options)


if __name__ == "__main__":
    run(main)
