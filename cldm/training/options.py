"""The options of a training. Imports no torch: a command line is refused within a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.options import CONFIGS, ModelOptions
from common.converters import file_path, flag, integer, name, random_seed
from common.options import option
from ldm.models.choices import OPTIMIZERS

BASE = CONFIGS / "train" / "tisynth.yaml"  # the published training
SEED = 23


def or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a text that may be empty, which is the published way to give no value."""
    return lambda word: convert(word) if word else None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ModelOptions):
    """Which configuration to train by, on which data, from which weights, on what devices; see ``cldm.training.run``.

    ``settings`` win over the files of ``base`` and ``config_model``, and all other options over the settings.
    """

    base: tuple[Path, ...] = option(
        (),
        names=("--base", "-b"),
        nargs="*",
        metavar="YAML",
        help="training settings: data, rate, trainer; configs/train/tisynth.yaml by default, the run's own to --resume",
    )
    config_model: Path | None = option(
        None, metavar="YAML", help="model settings; configs/model/tisynth_v15.yaml by default"
    )
    bands: Path | None = option(
        None,
        metavar="YAML",
        help="what `tisynth stats` measured of the images' bands; changes the model, after all other files",
    )
    name: str | None = option(
        None,
        names=("-n", "--name"),
        convert=or_none(name),
        nargs="?",
        help="name of the run's folder below --logdir; the time by default",
    )
    logdir: Path = option(Path("logs"), names=("--logdir", "-l"), help="folder of all runs")
    data_root: str | Path | None = option(None, metavar="DIR", help="folder that the lists' paths are relative to")
    train_list: str | Path | None = option(
        None, names=("--train-txt-file",), metavar="FILE", help="training items as JSON lines"
    )
    val_list: str | Path | None = option(
        None, names=("--val-txt-file",), metavar="FILE", help="validation items as JSON lines"
    )
    pretrain_path: Path | None = option(
        None, metavar="CKPT", help="start weights: Stable Diffusion, ControlNet or TISynth"
    )
    allow_mismatch: tuple[str, ...] = option((), metavar="MODULE", help="modules that --pretrain-path need not fit")
    lora: int | None = option(
        None,
        convert=integer(1, 16_384),
        metavar="RANK",
        help="train LoRA layers in the place of the attention's projections, in less memory: docs/memory.md",
    )
    lora_targets: tuple[str, ...] = option(
        (),
        metavar="LAYER",
        help="the layers that get them, by the ends of their names; to_q to_k to_v to_out.0 by default",
    )
    optimizer: str | None = option(
        None,
        choices=OPTIMIZERS,
        help="which AdamW: by one kernel (adamw_fused, the configuration's default), or with averages in 8 bit (on a "
        "GPU, by bitsandbytes)",
    )
    threads: int | None = option(
        None,
        convert=integer(1, 1024),
        help="CPU threads of a process; by default its physical cores, or OMP_NUM_THREADS",
    )
    gpus: str = option("auto", help="auto, cpu, or indices: 0 or 0,1,2,3 (a comma separated list, as published)")
    num_nodes: int = option(1, convert=integer(1), help="machines; start the same command on each by SLURM or torchrun")
    precision: str | None = option(
        None, help="32-true, bf16-mixed, 16-mixed, ...: see Lightning; the configuration's by default"
    )
    seed: int | None = option(
        None,
        names=("--seed", "-s"),
        convert=random_seed,
        help=f"of order, time steps, noise, references, weights; the configuration's by default, or {SEED}",
    )
    resume: Path | None = option(
        None,
        names=("--resume", "-r"),
        convert=or_none(file_path),
        nargs="?",
        metavar="RUN",
        help="go on with a run: its folder, or one of its checkpoints; without either, as published, a new run",
    )
    scale_lr: bool | None = option(
        None,
        convert=flag,
        nargs="?",
        const=True,
        help="rate x batch size x GPUs x accumulation; true by default, the run's own to --resume",
    )
    save_every: int | None = option(
        None,
        convert=integer(1),
        metavar="STEPS",
        help="write last.ckpt every so many steps, too, not at the end of epochs and of training alone",
    )
    cache_latents: Path | None = option(
        None,
        metavar="DIR",
        help="compute texts' embeddings once, and latents, in data.params.cache_variants variants an item, and keep "
        "them there; the configuration's by default, or none",
    )
    skip_invalid: bool = option(False, help="leave faulty items out instead of stopping")
    follow_links: bool = option(False, help="take files outside --data-root that links below it lead to")
    dry_run: bool = option(False, help="check everything, print the plan, and stop")
    settings: tuple[str, ...] = option(
        (), positional=True, nargs="*", metavar="key=value", help="any value of the configuration"
    )

    def stated(self) -> dict[str, Any]:
        """What the command says of the configuration by itself, after all files; ``settings`` win over it."""
        return {}
