"""The one error that a user is meant to read."""


class InputError(ValueError):
    """Something the user gave is wrong. The message names file, line and field and says what to do.

    Commands print it in one line and end with exit code 2.
    """
