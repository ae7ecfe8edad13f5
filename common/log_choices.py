"""The logs that a training may have, see ``common.loggers``. Imports nothing, so that a command line can list them."""

LOGGERS = ("tensorboard", "csv", "wandb")
