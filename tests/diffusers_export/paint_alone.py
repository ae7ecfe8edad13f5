"""Run by itself, from an empty folder: paints by exported folders, and must not find this project."""

import importlib.abc
import json
import sys

HOUSE = ("common", "ldm", "cldm", "gss", "segmentation", "scripts", "tisynth", "tests")


class Wall(importlib.abc.MetaPathFinder):
    """Says so where anything imports this project."""

    def find_spec(self, fullname, path=None, target=None):
        """See ``importlib.abc.MetaPathFinder``."""
        assert fullname.split(".")[0] not in HOUSE, fullname


sys.meta_path.insert(0, Wall())

from diffusers import DiffusionPipeline  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

for task in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(task["folder"], trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    given = load_file(task["given"])
    made = {
        f"{scale} {rescale}": pipe(
            given["mask"].numpy(),
            given["reference"],
            task["prompt"],
            num_inference_steps=task["steps"],
            guidance_scale=scale,
            guidance_rescale=rescale,
            latents=given["noise"],
            output_type="pt",
        ).images
        for scale, rescale in task["scales"]
    }
    save_file(made, task["out"])
assert not set(HOUSE) & {name.split(".")[0] for name in sys.modules}
