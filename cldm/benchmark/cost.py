"""Floating-point operations of a synthesis, counted without weights: what each saving saves of the published way."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cldm.benchmark.timing import count_flops
from cldm.build import load_config, outline
from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.options import BenchmarkOptions
from cldm.reuse import EncoderReuse
from cldm.synthesis.guiding import guidance_of, sparing, states_of, time_steps_of
from cldm.synthesis.options import SamplingOptions
from cldm.synthesis.saving_options import PRESETS
from common.errors import InputError
from common.trust import trust
from ldm.models.guidance import ClassifierFreeGuidance, NoGuidance

TOKENS = 77  # of a text
# What is counted beside the presets, as it is typed.
SAVINGS: dict[str, dict[str, Any]] = {
    "--guidance-interval 0.1 0.8": {"guidance_interval": (0.1, 0.8)},
    "--reference-span 0 0.5": {"reference_span": (0.0, 0.5)},
    "--mask-strength 0 --reference-strength 0": {"mask_strength": 0.0, "reference_strength": 0.0},
    **{
        f"--reuse-encoder {which} --key-steps {keys}": {"reuse_encoder": which, "key_steps": (keys,)}
        for which in ("branches", "all")
        for keys in ("every-2", "every-3", "every-5", "early")
    },
    "--sampler dpmsolver++ --steps 20 --guidance-interval 0.1 0.8 --reuse-encoder branches --key-steps every-2": {
        "sampler": "dpmsolver++",
        "steps": 20,
        "guidance_interval": (0.1, 0.8),
        "reuse_encoder": "branches",
        "key_steps": ("every-2",),
    },
    "--sampler dpmsolver++ --steps 12 --guidance-interval 0.1 0.8 --reuse-encoder all --key-steps every-3": {
        "sampler": "dpmsolver++",
        "steps": 12,
        "guidance_interval": (0.1, 0.8),
        "reuse_encoder": "all",
        "key_steps": ("every-3",),
    },
    "--sampler lcm --steps 4 --scale 1": {"sampler": "lcm", "steps": 4, "scale": 1.0},
}


class _InShapes:
    """A model without memory for its weights: guidance reads the time step, its networks take shapes alone."""

    def __init__(self, model: ControlLDM) -> None:
        self.model_of_shapes = model
        self.betas = torch.linspace(0.001, 0.01, len(model.betas))  # in which number counts alone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model_of_shapes, name)

    def apply_model(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See ``ControlLDM.apply_model``."""
        return self.model_of_shapes.apply_model(x, t.to(x.device), cond)


@torch.no_grad()
def synthesis_flops(model: ControlLDM, options: SamplingOptions, height: int, width: int) -> int:
    """Operations of one image: all denoising steps and the decoding; without texts and reference, encoded once.

    Args:
        model: on the device ``meta``, see ``cldm.build.outline``.
        options: how it is made.
        height: of the image in pixels.
        width: alike.
    """

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    latent = (model.channels, height // model.factor, width // model.factor)
    text = empty(TOKENS, model.model.diffusion_model.transformer_options["context_dim"])
    reference = None if model.ssl_stage_model is None else empty(*latent)
    cond = Conditions(mask=empty(model.control_model.hint_channels, height, width), reference=reference, text=text)
    view: Any = _InShapes(model)
    make = guidance_of(view, options) or (ClassifierFreeGuidance if options.scale != 1 else None)
    part, x = sparing(view, options), empty(*latent)
    guided = NoGuidance(part, cond) if make is None else make(part, cond, cond.with_text(text.clone()), options.scale)

    times = time_steps_of(view, options)
    states = states_of(view, options, times)
    stretches = part.stretches if isinstance(part, EncoderReuse) else [range(i, i + 1) for i in range(len(times))]

    def steps(numbers: range) -> None:
        for i in numbers:
            guided(x, torch.tensor([times[i]]))

    # A stretch of steps depends on none before but for what is computed once, which the first of its kind may do: from
    # the second on, all of a kind take the same.
    seen: dict[Any, list[int]] = {}
    operations = count_flops(lambda: model.decode_first_stage(x))
    for numbers in stretches:
        taken = seen.setdefault((states[numbers.start], len(numbers)), [])
        if len(taken) < 2:
            taken.append(count_flops(partial(steps, numbers)))
        operations += taken[-1]
    return operations


def flops_table(options: BenchmarkOptions) -> list[str]:
    """Lines of a Markdown table: an image's operations by each preset and saving, and as shares of ``published``.

    Raises:
        InputError: a configuration or size that cannot be.
    """
    trust(options.trust)
    model = outline(load_config(options.config), str(options.config))
    height, width = options.size if len(options.size) == 2 else options.size * 2
    if height % model.multiple or width % model.multiple:
        raise InputError(f"‹size› {height} {width}: must be multiples of {model.multiple}")
    settings = {f"--preset {name}": SamplingOptions.of_preset(name) for name in PRESETS}
    for label, how in SAVINGS.items():
        if model.fuses or "--reference" not in label:
            settings[label] = SamplingOptions(**how)
    counts = {label: synthesis_flops(model, how, height, width) for label, how in settings.items()}
    whole = counts["--preset published"]
    lines = ["| what | GFLOP an image | of `published` |", "|---|---|---|"]
    return lines + [f"| `{label}` | {count / 1e9:.1f} | {count / whole:.2f} |" for label, count in counts.items()]
