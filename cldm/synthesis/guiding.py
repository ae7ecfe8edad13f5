"""From the options of a synthesis to what sampling takes: the guidance, and the model as far as it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.distillation.student import ConsistencyStudent
from cldm.guidance import Acting, ConditionGuidance, SpannedGuidance
from cldm.reuse import EncoderReuse, key_steps
from cldm.synthesis.options import SamplingOptions
from cldm.synthesis.saving_options import WHOLE
from common.errors import InputError
from ldm.models.choices import CONSISTENCY
from ldm.models.guidance import ClassifierFreeGuidance, Guidance, IntervalGuidance, NoGuidance, SplitGuidance
from ldm.models.schedule import make_scheduler, set_time_steps, spacing_of


def time_steps_of(model: ControlLDM, options: SamplingOptions) -> list[float]:
    """The time steps of a synthesis, the noisiest first.

    Raises:
        InputError: a number of steps that cannot be.
    """
    spacing = spacing_of(options.spacing, options.steps, model.zero_terminal_snr, options.sampler)
    scheduler = make_scheduler(options.sampler, model.betas, model.parameterization, spacing)
    times = set_time_steps(scheduler, options.steps)
    return [float(t) for t in times[options.steps - options.steps_taken :]]


def few_steps(model: ControlLDM, options: SamplingOptions) -> list[str]:
    """A line about steps that begin too far from noise, or about guidance that is there twice.

    Raises:
        InputError: a number of steps that cannot be.
    """
    start, total = int(time_steps_of(model, options)[0]), len(model.betas)
    if isinstance(model, ConsistencyStudent):
        return _of_a_student(model, options)
    if options.sampler in CONSISTENCY and options.scale > 2:
        return [
            f"‹scale› {options.scale:g}: what was distilled for ‹sampler› {options.sampler} has guidance within; take "
            "1 to 2, unless yours has none"
        ]
    if start > 0.85 * total or options.paints_over:
        return []
    spacing = spacing_of(options.spacing, options.steps, model.zero_terminal_snr)
    return [
        f"‹steps› {options.steps}: {spacing} time steps begin at {start} of {total}, where the network "
        "expects less noise than there is, and images stay noisy; take ‹spacing› trailing, or more steps"
    ]


def _of_a_student(model: ConsistencyStudent, options: SamplingOptions) -> list[str]:
    for name in ("scale", "mask_scale", "reference_scale"):
        if (scale := getattr(options, name)) != 1:
            within = model.distillation.guidance
            return [f"‹{name}› {scale:g}: this model was distilled with guidance within ({within}); take ‹{name}› 1"]
    if options.sampler in CONSISTENCY:
        return []
    return [f"‹sampler› {options.sampler}: this model was distilled for ‹sampler› lcm or tcd, in 4 to 8 ‹steps›"]


def guidance_of(model: ControlLDM, options: SamplingOptions) -> Callable[..., Guidance] | None:
    """What makes the guidance; None where the text guides, at all steps, and both branches act at all of them.

    Raises:
        InputError: something about references for a model that reads none.
    """
    mask, reference = _acting(options)
    _check_reference(model, options)
    make: Callable[..., Guidance] | None = None
    if options.mask_scale != 1 or options.reference_scale != 1:
        scales: dict[str, Any] = {"mask_scale": options.mask_scale, "reference_scale": options.reference_scale}
        make = partial(ConditionGuidance, **scales, split=options.split_guidance, rescale=options.guidance_rescale)
    elif options.guidance_rescale and options.scale != 1:
        make = _by_text(options)
    if options.guidance_interval != WHOLE and (make is not None or options.scale != 1):
        low, high = options.guidance_interval
        make = partial(IntervalGuidance, make=make or _by_text(options), low=low, high=high)
    if (mask, reference) != (Acting(), Acting()):
        make = partial(SpannedGuidance, make=make or _by_text(options), mask=mask, reference=reference)
    return make


def _check_reference(model: ControlLDM, options: SamplingOptions) -> None:
    if model.fuses:
        return
    for name, default in (("reference_scale", 1), ("reference_strength", 1), ("reference_span", WHOLE)):
        if (given := getattr(options, name)) != default:
            told = f"{given:g}" if isinstance(given, float | int) else " ".join(f"{one:g}" for one in given)
            raise InputError(f"‹{name}› {told}: this model reads no reference; leave it out, at its default")


def _acting(options: SamplingOptions) -> tuple[Acting, Acting]:
    mask = Acting(options.mask_strength, *options.mask_span)
    return mask, Acting(options.reference_strength, *options.reference_span)


def _by_text(options: SamplingOptions) -> Callable[..., Guidance]:
    if options.scale == 1:
        return _unguided
    make = SplitGuidance if options.split_guidance else ClassifierFreeGuidance
    return partial(make, rescale=options.guidance_rescale) if options.guidance_rescale else make


def _unguided(model: Any, cond: Conditions, uncond: Conditions, scale: float) -> Guidance:
    return NoGuidance(model, cond)


def states_of(model: ControlLDM, options: SamplingOptions, times: Sequence[float]) -> list[tuple[Any, ...]]:
    """What runs at each time step: whether it is guided, and how strongly each branch acts."""
    total = len(model.betas)
    low, high = options.guidance_interval
    return [(low <= t / total <= high, *(acting.at(t, total) for acting in _acting(options))) for t in times]


def sparing(model: ControlLDM, options: SamplingOptions) -> ControlLDM | EncoderReuse:
    """The model for one sampling run, as ``reuse_encoder`` says; the model itself where all of it runs at each step."""
    if options.reuse_encoder == "none":
        return model
    times = time_steps_of(model, options)
    states = states_of(model, options, times)
    changes = [i for i in range(1, len(times)) if states[i] != states[i - 1]]
    keys = [*key_steps(options.key_steps, len(times)), *changes]
    return EncoderReuse(model, times, keys, options.reuse_encoder == "all", options.steps_at_once)
