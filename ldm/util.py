"""The published path of ``instantiate_from_config``, for code that imports it from here."""

from ldm.targets import instantiate_from_config

__all__ = ["instantiate_from_config"]
