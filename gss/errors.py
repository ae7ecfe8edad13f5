"""The one error that a user of ``gss`` is meant to read."""


class InputError(ValueError):
    """Something the user gave is wrong: the message names file and field and says what to do."""
