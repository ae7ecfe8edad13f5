"""Options of all work that reads an mmseg config; what they mean is in ``segmentation.config.load_config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.options import Options, option


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(Options):
    """Settings that replace a config's own, and whether it may run: ``{"train_cfg.max_iters": 10}`` or typed words."""

    cfg_options: Sequence[str] | Mapping[str, Any] = option(
        (), metavar="KEY=VALUE", repeated=True, help="config values to set; nested keys with dots"
    )
    trust_config: bool = option(
        False,
        help="mmseg configs are Python and run: one from a folder of results is taken as plain values, as this project "
        "writes it there, unless you vouch for it with this",
    )
