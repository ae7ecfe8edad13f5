"""TISynth as one package: the command ``tisynth``, the packages as ``tisynth.ldm`` ..., and the calls of a notebook.

    import tisynth
    model = tisynth.create_model("configs/model/tisynth_tiny.yaml", "start.ckpt")

The calls are imported when they are first used, since torch takes seconds. Where this is installed, the packages lie in
this folder (setup.py puts them here); in a checkout they lie beside it, and ``tisynth.ldm`` is another name of ``ldm``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not Path(__file__).with_name("common").is_dir():
    from tisynth.checkout import Aliases

    sys.meta_path.insert(0, Aliases(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from cldm.build import create_model
    from cldm.synthesis.folder import synthesize_folder
    from cldm.synthesis.options import SamplingOptions, SynthesisOptions
    from cldm.synthesis.run import synthesize
    from cldm.training.options import TrainingOptions
    from cldm.training.run import train
    from evaluation.compare import CompareOptions, compare_trainings
    from ldm.models.sampling import sample
    from post_processing.filter import filter_images
    from post_processing.filter_options import FilterOptions
    from post_processing.resample import ResampleOptions, resample
    from segmentation.config import load_config
    from segmentation.inference import load_segmentor, open_segmentor

__all__ = [
    "CompareOptions",
    "FilterOptions",
    "ResampleOptions",
    "SamplingOptions",
    "SynthesisOptions",
    "TrainingOptions",
    "compare_trainings",
    "create_model",
    "filter_images",
    "load_config",
    "load_segmentor",
    "open_segmentor",
    "resample",
    "sample",
    "synthesize",
    "synthesize_folder",
    "train",
]
_CALLS = {
    "CompareOptions": "evaluation.compare",
    "FilterOptions": "post_processing.filter_options",
    "ResampleOptions": "post_processing.resample",
    "SamplingOptions": "cldm.synthesis.options",
    "SynthesisOptions": "cldm.synthesis.options",
    "TrainingOptions": "cldm.training.options",
    "compare_trainings": "evaluation.compare",
    "create_model": "cldm.build",
    "filter_images": "post_processing.filter",
    "load_config": "segmentation.config",
    "load_segmentor": "segmentation.inference",
    "open_segmentor": "segmentation.inference",
    "resample": "post_processing.resample",
    "sample": "ldm.models.sampling",
    "synthesize": "cldm.synthesis.run",
    "synthesize_folder": "cldm.synthesis.folder",
    "train": "cldm.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _CALLS:
        raise AttributeError(f"module 'tisynth' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tisynth.{_CALLS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
