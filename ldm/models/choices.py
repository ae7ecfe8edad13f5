"""The names by which solvers and their time steps are chosen.

Imports nothing, so that a command line can list them.
"""

SOLVERS = ("ddim", "dpmsolver++", "unipc", "euler")  # of the probability flow, of any model
CONSISTENCY = ("lcm", "tcd")  # of models, or of LoRA weights, that were distilled for a few steps
SAMPLERS = (*SOLVERS, *CONSISTENCY)
TAKE_ETA = ("ddim", "tcd")
SPACINGS = ("auto", "leading", "trailing")
COMPILED = ("no", "blocks", "whole", "graphs")  # see ``ldm.compiling``
OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit")  # see ``ldm.training.optimizers``
QUANTIZED = ("none", "int8", "fp8")  # see ``ldm.quantization``
