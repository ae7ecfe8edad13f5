"""The names by which solvers, their time steps and the logs of trainings are chosen.

Imports nothing, so that a command line can list them.
"""

SAMPLERS = ("ddim", "dpmsolver++", "unipc", "euler")
SPACINGS = ("auto", "leading", "trailing")
LOGGERS = ("tensorboard", "csv", "wandb")  # see ``ldm.training.loggers``
