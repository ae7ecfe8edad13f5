"""Generative Semantic Segmentation (GSS, CVPR 2023) for mmseg: ``custom_imports = dict(imports=["gss"])``."""

import warnings

from common.errors import InputError

warnings.filterwarnings("ignore", message="Fail to import")  # compiled operators that nothing here needs

from gss import heads, mseg, segmentors  # noqa: E402

__all__ = ["InputError", "heads", "mseg", "segmentors"]
