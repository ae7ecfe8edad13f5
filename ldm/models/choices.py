"""The names by which solvers and their time steps are chosen, and how many steps are taken.

Imports nothing of torch, so that a command line can list and check them.
"""

from common.errors import InputError

SOLVERS = ("ddim", "dpmsolver++", "unipc", "euler")  # of the probability flow, of any model
CONSISTENCY = ("lcm", "tcd")  # of models, or of LoRA weights, that were distilled for a few steps
SAMPLERS = (*SOLVERS, *CONSISTENCY)
TAKE_ETA = ("ddim", "tcd")
SPACINGS = ("auto", "leading", "trailing")
COMPILED = ("no", "blocks", "whole", "graphs")  # see ``ldm.compiling``
OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit")  # see ``ldm.training.optimizers``
QUANTIZED = ("none", "int8", "fp8")  # see ``ldm.quantization``


def steps_over_image(steps: int, strength: float) -> int:
    """Steps that are taken where an image is painted over: the last int(strength x steps).

    Args:
        steps: from noise alone.
        strength: share of them, above 0 to 1.

    Raises:
        InputError: none is left, or more than there are.
    """
    if not 0 < strength <= 1:
        raise InputError(f"‹start_strength› {strength:g}: write a number above 0, up to 1")
    taken = int(strength * steps + 1e-9)  # 0.29 of 100 is 29, which floating point makes 28.999...
    if taken < 1:
        raise InputError(f"‹start_strength› {strength:g}: leaves none of {steps} ‹steps›; take more of either")
    return taken
