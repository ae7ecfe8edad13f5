"""The golden heads and dVAEs of GSS, built from their recipe."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import gss  # noqa: F401  (registers the heads)

TINY = {
    "encoder": {"n_hid": 4, "n_blk_per_group": 1, "vocab_size": 32},
    "decoder": {"n_init": 4, "n_hid": 4, "n_blk_per_group": 1, "vocab_size": 32},
}


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Models this small are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def records(golden: Path) -> Path:
    return golden / "gss"


@pytest.fixture(scope="session")
def settings(records: Path) -> dict[str, Any]:
    return json.loads((records / "head_configs.json").read_text())


@pytest.fixture(scope="session")
def golden_tensor(recipe: ModuleType) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """Value of a head's floating entry, as the records' README defines it."""

    def tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        value, last = recipe.noise(key, tuple(shape)).astype(np.float64), key.rsplit(".", 1)[-1]
        if key == "d_vae.decoder.blocks.input.w":
            pass
        elif len(shape) >= 2:
            value = (value / np.sqrt(np.prod(shape[1:]))).astype(np.float32).astype(np.float64)
            if key.startswith("d_vae.encoder.") and len(shape) == 4:
                value -= value.mean((1, 2, 3), keepdims=True)
        elif last == "running_mean":
            value *= 0.1
        elif last == "running_var":
            value = 1 + np.abs(0.1 * value)
        elif last == "weight":
            value = 1 + 0.1 * value
        else:
            value *= 0.05
        return torch.from_numpy(value.astype(np.float32))

    return tensor


@pytest.fixture(scope="session")
def golden_dvae(settings, golden_tensor):
    from gss.dvae import DVAE

    dvae = DVAE(encoder=settings["mini_encoder"], decoder=settings["mini_decoder"])
    dvae.load_state_dict({key: golden_tensor(f"d_vae.{key}", v.shape) for key, v in dvae.state_dict().items()})
    return dvae


@pytest.fixture(scope="session")
def build_golden_head(settings, golden_tensor):
    """build(kind) -> the records' head with their weights; kind is FF, SF or FTW."""
    from mmseg.registry import MODELS

    values: dict[Any, torch.Tensor] = {}

    def build(kind: str) -> torch.nn.Module:
        config = {**copy.deepcopy(settings["base"]), "type": settings["classes"][kind]}
        config |= copy.deepcopy(settings["FTW_extra"]) if kind == "FTW" else {}
        config["d_vae"] = {"encoder": settings["mini_encoder"], "decoder": settings["mini_decoder"]}
        head = MODELS.build(config)
        state = head.state_dict()
        for key, value in state.items():
            if value.is_floating_point():
                if (key, value.shape) not in values:
                    values[key, value.shape] = golden_tensor(key, value.shape)
                state[key] = values[key, value.shape]
        head.load_state_dict(state)
        return head

    return build


@pytest.fixture
def command(capsys):
    """command(module, *arguments) -> (exit code, printed, errors), as a script run by the shell."""
    from common import command as cli

    def run(module: ModuleType, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.run(lambda: module.main([str(a) for a in arguments]))
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Weights of a tiny dVAE, random."""
    from gss.dvae import DVAE, save_dvae

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dvae") / "tiny.safetensors"
    save_dvae(DVAE(**TINY), path)
    return path


@pytest.fixture
def tiny_model(tiny_weights):
    """tiny_model(head type, **changes) -> a segmentor of 3 classes on four strided convolutions."""
    from mmengine.config import ConfigDict
    from mmseg.registry import MODELS

    @MODELS.register_module(name="TinyLevels", force=True)
    class TinyLevels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.levels = torch.nn.ModuleList(torch.nn.Conv2d(3, 8, s, s) for s in (4, 8, 16, 32))
            self.norm = torch.nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            x = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32, 0, -x.shape[-2] % 32))
            return [self.norm(level(x)) for level in self.levels]

    def build(head: str = "GenerativeSegHeadFF", segmentor: dict[str, Any] | None = None, **changes: Any) -> Any:
        torch.manual_seed(0)
        decode_head = {
            "type": head,
            "palette": [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]],
            "num_classes": 3,
            "in_channels": [8, 8, 8, 8],
            "in_index": [1, 0, 2, 3],
            "channels": 8,
            "d_vae": {"weights": str(tiny_weights)},
            "indice_seg_channel": 8,
            "indice_cls_channel": 16,
            "swin_num_head": 2,
            "norm_cfg": {"type": "BN"},
            "loss_decode": [
                {"type": "CrossEntropyLoss", "loss_name": "loss_ce"},
                {"type": "CrossEntropyLoss", "loss_name": "loss_ce_pixel"},
            ],
        }
        if head.endswith("FTW"):
            decode_head |= {"post_seg_channel": 8, "post_swin_num_head": 2, "loss_decode": {"type": "CrossEntropyLoss"}}
        config = {
            "type": "EncoderDecoder",
            "backbone": {"type": "TinyLevels"},
            "decode_head": decode_head | changes,
            "test_cfg": {"mode": "whole"},
        }
        return MODELS.build(ConfigDict(config | (segmentor or {})))

    return build
