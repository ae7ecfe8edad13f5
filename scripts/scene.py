r"""Paints a mask of any size after a reference image, by overlapping windows that are denoised together.

  python -m scripts.scene mask.png --reference summer.png --config runs/tiny/config.yaml \
      --ckpt runs/tiny/checkpoints/last.ckpt --out scene.png

Memory grows with a scene's width alone; what is under way lies in .scene.png.work, on the disk of the output. Started
again, a stopped scene goes on. Beside the image, scene.png.json says what it was made of.
"""

from __future__ import annotations

from cldm.scenes.options import SceneOptions
from common.command import read_options, run


def main() -> None:
    """Parses, paints, tells."""
    options = read_options(SceneOptions, __doc__ or "")
    from cldm.scenes.run import paint_scene  # torch takes seconds to import: after the options

    if paint_scene(options):
        print(options.file)


if __name__ == "__main__":
    run(main)
