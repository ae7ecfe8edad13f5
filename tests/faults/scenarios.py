"""Commands that the kill harness starts: small inputs, how to start and start again, and what must come out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.conftest import ROOT, SMALL
from tests.segmentation import pixel_backbone
from tests.segmentation.chain import save_pair

CLASSES = 5


@dataclass(frozen=True)
class Scenario:
    """A command and what it leaves.

    Attributes:
        script: module of ``scripts``.
        argv: its arguments, from the folder of inputs and the folder to write; the same at every start, unless what is
            in the folder says otherwise, as for a user.
        result: what must be equal after any number of kills: names and contents, without times and paths.
        environment: variables of the command.
    """

    script: str
    argv: Callable[[Path, Path], list[object]]
    result: Callable[[Path], dict[str, Any]]
    environment: dict[str, str] = field(default_factory=dict)


def make_inputs(base: Path) -> None:
    """Scenes of 32 px with weights of a synthesis model, and pairs of several sizes with weights of a segmentor."""
    scenes = [sys.executable, str(ROOT / "demo" / "make_data.py"), "--out", str(base / "scenes"), "--size", "32"]
    subprocess.run([*scenes, "--train", "8", "--test", "4", "--references", "4"], check=True, capture_output=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        size = ((24, 32), (40, 24))[i % 2]
        for split in ("train", "test"):
            save_pair(rng, base / f"img_{split}/r{i}.png", base / f"label_{split}/r{i}.png", size, CLASSES)
        save_pair(rng, base / f"syn/r{i}_seed_1.png", base / "unused/m.png", size, CLASSES)
        save_pair(
            rng,
            base / f"joint/resampled_img/r{i}_seed_1.png",
            base / f"joint/resampled_label/r{i}_seed_1.png",
            size,
            CLASSES,
        )
    (base / "classes.json").write_text(json.dumps({"classes": [f"name {c}" for c in range(CLASSES)]}))
    weight, bias = rng.normal(size=(CLASSES, 3, 1, 1)), rng.normal(size=CLASSES)
    torch.save(
        {
            "state_dict": {
                "decode_head.conv_seg.weight": torch.tensor(weight).float(),
                "decode_head.conv_seg.bias": torch.tensor(bias).float(),
            }
        },
        base / "weights.pth",
    )
    pixel_backbone.write_config(base / "config.py", CLASSES, str(base / "classes.json"), str(base))


def make_weights(base: Path) -> None:
    """Weights of the tests' synthesis model; images depend on all inputs."""
    from cldm.build import create_model
    from ldm.checkpoint import save_state_dict

    torch.manual_seed(0)
    model = create_model(SMALL, classes=str(base / "scenes/classes.json"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("first_stage", "cond_stage")) and not parameter.any():
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    save_state_dict(model.state_dict(), base / "small.safetensors")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def tensors(content: Any) -> str:
    """Digest of all tensors and numbers in nested containers, in their order."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                total.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        elif isinstance(value, (int, float, str)):
            total.update(str(value).encode())

    add(content)
    return total.hexdigest()[:16]


def pictures(folder: Path, pattern: str = "*") -> dict[str, Any]:
    """Digest of the bytes of each image; hidden files are not looked at."""
    files = sorted(path for path in folder.glob(pattern) if path.suffix in (".png", ".jpg") and path.name[0] != ".")
    return {path.relative_to(folder).as_posix(): _hash(path.read_bytes()) for path in files}


def _train_argv(base: Path, out: Path) -> list[object]:
    data, run = base / "scenes", out / "run"
    if (run / "checkpoints" / "last.ckpt").exists():
        return ["--resume", run, "--gpus", "cpu"]
    if run.exists():  # killed before its first checkpoint: what demo/run.sh does
        subprocess.run(["rm", "-rf", run], check=True)
    return [
        "--config-model",
        SMALL,
        "-n",
        "run",
        "-l",
        out,
        "--data-root",
        data,
        "--gpus",
        "cpu",
        "--train-txt-file",
        data / "train_set_items.json",
        "--val-txt-file",
        data / "test_set_items.json",
        f"model.params.classes={data}/classes.json",
        "model.params.use_ema=true",
        "lightning.trainer.max_steps=10",
        "lightning.callbacks.image_logger.params.max_images=0",
    ]


def _train_result(out: Path) -> dict[str, Any]:
    checkpoint = torch.load(out / "run/checkpoints/last.ckpt", weights_only=True)
    kept = sorted(path.name for path in (out / "run/checkpoints").glob("*.ckpt"))
    return {
        "step": checkpoint["global_step"],
        "weights": tensors(checkpoint["state_dict"]),
        "kept": kept,
        "optimizer": tensors(checkpoint["optimizer_states"]),
    }


def _inference_argv(base: Path, out: Path) -> list[object]:
    data = base / "scenes"
    return [
        "--config",
        SMALL,
        "--ckpt",
        base / "small.safetensors",
        "--data-root",
        data,
        "--gpus",
        "cpu",
        "--outdir",
        out,
        "--txt-file",
        data / "inference_set_items.json",
        "--classes",
        data / "classes.json",
        "--ddim-steps",
        "3",
        "--scale",
        "2",
        "--seed",
        "5",
        "--num-samples",
        "3",
        "--format",
        "png",
        "--batch-size",
        "2",
    ]


def _inference_result(out: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    others = sorted(path.name for path in out.iterdir() if path.suffix != ".png" and not path.name.endswith(".lock"))
    return {**pictures(out), "records": [line["name"] for line in lines], "others": others}


def _filter_argv(base: Path, out: Path) -> list[object]:
    return [
        base / "config.py",
        base / "weights.pth",
        "--real-img-path",
        base / "img_train",
        "--real-label-path",
        base / "label_train",
        "--syn-img-path",
        base / "syn",
        "--syn-mask-path",
        base / "label_train",
        "--filtered-mask-path",
        out / "filtered",
        "--save-loss",
        out / "loss",
        "--device",
        "cpu",
        "--num-workers",
        "2",
        "--batch-size",
        "2",
    ]


def _filter_result(out: Path) -> dict[str, Any]:
    statistics = json.loads((out / "filtered/filter_stats.json").read_text())
    statistics.pop("options")
    losses = {path.name: _hash(path.read_bytes()) for path in sorted((out / "loss").glob("*.npy"))}
    return {**pictures(out / "filtered"), **losses, "statistics": statistics}


def _resample_argv(base: Path, out: Path) -> list[object]:
    return [
        "--filtered-mask-path",
        base / "joint/resampled_label",
        "--syn-img-path",
        base / "joint/resampled_img",
        "--out-dir",
        out,
        "--classes",
        base / "classes.json",
        "--inaccurate",
        "name 1",
        "--num-workers",
        "2",
    ]


def _resample_result(out: Path) -> dict[str, Any]:
    statistics = json.loads((out / "resample_stats.json").read_text())
    statistics.pop("options")
    return {**pictures(out, "*/*"), "statistics": statistics}


def _segmentor_argv(base: Path, out: Path) -> list[object]:
    return ["train", base / "config.py", "--work-dir", out, "--max-iters", "8", "--pretrained", "none", "--resume"]


def _segmentor_result(out: Path) -> dict[str, Any]:
    last = Path((out / "last_checkpoint").read_text().strip())
    checkpoint = torch.load(last, weights_only=False)
    return {"name": last.name, "weights": tensors(checkpoint["state_dict"])}


def _compare_argv(base: Path, out: Path) -> list[object]:
    return [
        base / "config.py",
        "--synthesized",
        base / "joint",
        "--classes",
        base / "classes.json",
        "--data-root",
        base,
        "--seeds",
        "2",
        "--max-iters",
        "2",
        "--repeat",
        "1",
        "--out-dir",
        out,
    ]


def _compare_result(out: Path) -> dict[str, Any]:
    report = json.loads((out / "comparison.json").read_text())
    scores = [run["test"]["mIoU"] for runs in report["runs"].values() for run in runs]
    return {"scores": scores, "page": (out / "comparison.html").exists()}


def _dvae_argv(base: Path, out: Path) -> list[object]:
    return [
        "--masks",
        base / "scenes/label_train",
        "--palette",
        base / "scenes/classes.json",
        "--out",
        out / "dvae.safetensors",
        "--steps",
        "16",
        "--warmup",
        "4",
        "--batch-size",
        "2",
        "--crop-size",
        "16",
        "--scale",
        "1",
        "--n-hid",
        "4",
        "--n-init",
        "4",
        "--vocab-size",
        "16",
        "--save-every",
        "3",
        "--device",
        "cpu",
    ]


def _dvae_result(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {"weights": tensors(dict(sorted(load_file(out / "dvae.safetensors").items())))}


SCENARIOS = {
    "train": Scenario("train", _train_argv, _train_result),
    "inference": Scenario("inference", _inference_argv, _inference_result),
    "filter": Scenario("filter", _filter_argv, _filter_result),
    "resample": Scenario("resample", _resample_argv, _resample_result),
    "segmentor": Scenario("segmentor", _segmentor_argv, _segmentor_result),
    "compare": Scenario("compare", _compare_argv, _compare_result),
    "dvae": Scenario("train_dvae", _dvae_argv, _dvae_result),
}


def damaged_files(folder: Path) -> list[str]:
    """Files under their final names that do not open; there must be none at any moment."""
    bad = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."):
        try:
            if path.suffix in (".png", ".jpg"):
                with Image.open(path) as image:
                    image.load()
            elif path.suffix in (".ckpt", ".pth", ".state"):
                torch.load(path, map_location="cpu", weights_only=False)  # written by this harness's own commands
            elif path.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(path, "pt") as file:
                    list(file.keys())
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".npy":
                np.load(path, allow_pickle=False)
        except Exception as error:
            bad.append(f"{path.relative_to(folder)}: {error}")
    return bad
