"""The options of a distillation. Imports no torch: a command line is refused within a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.training.options import TrainingOptions
from common.converters import integer, number
from common.errors import InputError
from common.files import file_hash
from common.options import option

TARGET = "cldm.distillation.student.ConsistencyStudent"
# What a new distillation starts with where an option says nothing; of a resumed run, its own values hold.
SCALE, RATE, STEPS, DECAY, HUBER_C = 9.0, 1e-5, 2000, 0.95, 1e-3
FEW_STEPS = 4  # in which a student paints where nobody says how many


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainingOptions):
    """Which model is distilled, and how; on which data and devices, ``TrainingOptions`` say."""

    base: tuple[Path, ...] = option(
        (),
        names=("--base", "-b"),
        nargs="*",
        metavar="YAML",
        help="settings of data and trainer: the config.yaml of the teacher's run, or those that it was trained by; the "
        "run's own to --resume",
    )
    config_model: Path | None = option(
        None, metavar="YAML", help="the teacher's model settings; the last of --base by default"
    )
    pretrain_path: Path | None = option(
        None,
        names=("--teacher",),
        metavar="CKPT",
        help="the trained model's weights, from which the student starts, too; its run names the file, and reads it "
        "again to --resume",
    )
    use_ema: bool = option(False, help="take the teacher's running averages (model_ema.*)")
    allow_mismatch: tuple[str, ...] = ()  # a teacher fits as a whole
    scale: tuple[float, ...] | None = option(
        None,
        convert=number(0, 1000),
        metavar="W",
        help="guidance scale of the text, as you would paint with the teacher; two numbers: drawn between them for "
        f"each image and step; 1 is no guidance (default: {SCALE:g}; the run's own to --resume, as of what follows)",
    )
    mask_scale: float | None = option(
        None, convert=number(0, 1000), help="the same of the mask, see synthesis (default: 1)"
    )
    reference_scale: float | None = option(None, convert=number(0, 1000), help="the same of the reference (default: 1)")
    guidance_rescale: float | None = option(
        None, convert=number(0, 1), help="share by which guidance keeps the prediction's spread (default: 0)"
    )
    skip: int | None = option(
        None,
        convert=integer(1, 100_000),
        metavar="K",
        help="time steps that a step of the teacher skips; a divisor of the default (default: a 50th of the noise "
        "process, 20 of 1000)",
    )
    huber_c: float | None = option(
        None, convert=number(1e-9, 100), metavar="C", help=f"of the loss sqrt(d^2 + C^2) - C (default: {HUBER_C:g})"
    )
    ema_decay: float | None = option(
        None, convert=number(0, 0.999999), metavar="D", help=f"of the target network's average (default: {DECAY:g})"
    )
    learning_rate: float | None = option(
        None, convert=number(0, 1), metavar="RATE", help=f"whatever the batch (default: {RATE:g})"
    )
    max_steps: int | None = option(
        None, convert=integer(1), metavar="N", help=f"steps of the distillation (default: {STEPS})"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and (len(self.scale) > 2 or self.scale[0] > self.scale[-1]):
            told = " ".join(f"{scale:g}" for scale in self.scale)
            raise InputError(f"‹scale› {told}: write one number, or two of which the first is smaller")
        if self.resume is not None:
            if self.use_ema:
                raise InputError("‹use_ema› with ‹resume›: the run has its teacher already; leave it out")
            return
        if self.pretrain_path is None:
            raise InputError("‹pretrain_path› is needed: the weights of the model that is to be distilled")
        if not (self.base and (self.config_model or self.base[-1])):
            raise InputError("‹base› is needed: the config.yaml of the teacher's run, or other settings of data")
        if self.config_model is None:
            object.__setattr__(self, "config_model", self.base[-1])

    def stated(self) -> dict[str, Any]:
        """See ``TrainingOptions``: the student's class, what it learns by, and pictures as it will paint them."""
        new = self.resume is None

        def given(value: Any, default: Any) -> Any:  # of a run that goes on, what is not given stays as it is
            return default if value is None and new else value

        distillation: dict[str, Any] = {
            "scale": None if (scale := given(self.scale, (SCALE,))) is None else list(scale),
            "mask_scale": given(self.mask_scale, 1.0),
            "reference_scale": given(self.reference_scale, 1.0),
            "guidance_rescale": given(self.guidance_rescale, 0.0),
            "skip": self.skip,
            "huber_c": given(self.huber_c, HUBER_C),
        }
        params: dict[str, Any] = {"ema_decay": given(self.ema_decay, DECAY)}
        rate = given(self.learning_rate, RATE)
        lightning: dict[str, Any] = {"trainer": {"max_steps": given(self.max_steps, STEPS)}}
        model: dict[str, Any] = {"params": params}
        if new:
            assert self.pretrain_path is not None
            path = self.pretrain_path
            whose = {"teacher": str(path.absolute()), "teacher_hash": file_hash(path), "use_ema": self.use_ema}
            distillation = whose | distillation
            model["target"] = TARGET
            trainable = "fusion" if self.lora is not None else "all"  # LoRA says itself what trains
            params |= {"use_ema": True, "trainable": trainable, "loss_weighting": "none", "warmup_steps": 0}
            params["timestep_sampling"] = "uniform"  # lcm begins at the noise's end, which logit_normal hardly draws
            pictures = {"steps": FEW_STEPS, "sampler": "lcm", "guidance_scale": 1.0}
            lightning["callbacks"] = {"image_logger": {"params": pictures}}
        params["distillation"] = distillation
        scale_lr = None if rate is None else False
        stated = _given({"model": model, "lightning": lightning, "base_learning_rate": rate, "scale_lr": scale_lr})
        if new:  # the decay of the teacher's training would go on where that ended
            stated["model"]["params"]["decay_steps"] = None
        return stated


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without values that are None, and mappings of nothing else."""
    inner = {key: _given(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}
