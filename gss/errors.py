"""The error under the name that users of ``gss`` know."""

from common.errors import InputError

__all__ = ["InputError"]
