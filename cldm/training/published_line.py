"""Command lines as the published ``main.py`` takes them: Lightning's options, and values of the configuration.

``--max_steps 10`` becomes ``lightning.trainer.max_steps=10``, ``--data.params.batch_size 4`` becomes
``data.params.batch_size=4``; what Lightning 2 no longer has is said in one line, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from cldm.training.sections import TrainerParams, Training
from common.errors import InputError
from common.schema import one_line

TRAINER = tuple(TrainerParams.model_fields)  # Lightning's options that a configuration may give
# Options of Lightning 1's (or 2's) trainer that this project decides itself, or that are gone: what to know instead.
WITHOUT_EFFECT = {
    "amp_backend": "Lightning 2 has PyTorch's mixed precision alone",
    "amp_level": "Lightning 2 has PyTorch's mixed precision alone",
    "auto_lr_find": "Lightning 2 has it no more; give base_learning_rate",
    "auto_scale_batch_size": "Lightning 2 has it no more; give data.params.batch_size",
    "auto_select_gpus": "--gpus says which GPUs",
    "barebones": "a run always writes its checkpoints and its log",
    "callbacks": "lightning.callbacks of the configuration sets them",
    "checkpoint_callback": "checkpoints are always written, as lightning.modelcheckpoint says",
    "default_root_dir": "runs lie below --logdir",
    "flush_logs_every_n_steps": "TensorBoard's file is flushed by itself",
    "ipus": "Lightning 2 has them no more",
    "log_gpu_memory": "Lightning 2 has it no more; nvidia-smi shows it",
    "logger": "a run always has a log; lightning.logger=csv or wandb names another than TensorBoard's",
    "model_registry": "runs lie below --logdir",
    "move_metrics_to_cpu": "Lightning 2 has it no more",
    "multiple_trainloader_mode": "there is one set of training items",
    "num_processes": "write --gpus cpu:2 for two processes on the CPU",
    "plugins": "the run needs its own",
    "prepare_data_per_node": "there is nothing to prepare",
    "process_position": "there is one progress bar",
    "progress_bar_refresh_rate": "write --enable_progress_bar false for none",
    "reload_dataloaders_every_epoch": "write --reload_dataloaders_every_n_epochs 1",
    "replace_sampler_ddp": "the data module always shares the items among processes",
    "stochastic_weight_avg": "model.params.use_ema=true averages weights",
    "terminate_on_nan": "a loss that is no number always ends a run",
    "tpu_cores": "there is no support for TPUs",
    "track_grad_norm": "Lightning 2 has it no more",
    "truncated_bptt_steps": "Lightning 2 has it no more",
    "use_distributed_sampler": "the data module always shares the items among processes",
    "weights_save_path": "runs lie below --logdir",
    "weights_summary": "write --enable_model_summary false for none",
}
_OTHER_NAMES = {"distributed_backend": "strategy"}
_TAKEN = ("accelerator", "devices", "resume_from_checkpoint")  # by options of our own
_TRUE, _FALSE = ("true", "yes", "y", "t"), ("false", "no", "n", "f")
_NAME = re.compile(r"--([A-Za-z][\w.\[\]-]*)(?:=(.*))?", re.DOTALL)


@dataclass
class PublishedLine:
    """What a command line says beside the options of our own.

    Attributes:
        others: the words that are left, for our own parser.
        settings: ``key=value`` texts.
        notes: a line for each option without effect, or of another name.
        taken: what ``accelerator``, ``devices`` and ``resume_from_checkpoint`` were given.
    """

    others: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)


def read_line(words: Sequence[str], own: Collection[str]) -> PublishedLine:
    """Sorts the words of a command line.

    Args:
        words: the command line.
        own: options of our own parser, as they are written (``--name``).

    Raises:
        InputError: an option that neither we nor Lightning know, or one without its value.
    """
    line = PublishedLine()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            line.others += [word, *rest]
            break
        match = _NAME.fullmatch(word)
        if match is None or word.partition("=")[0] in own:
            line.others.append(word)
            continue
        name, value = match[1], match[2]
        plain = name.replace("-", "_")
        if value is None and rest and _is_value(rest[0]):
            value = rest.pop(0)
        _take(line, name, plain, value)
    return line


def _is_value(word: str) -> bool:
    """Whether a word can be the value of the option before it: neither an option nor a setting."""
    option = word.startswith("-") and not re.fullmatch(r"-[\d.].*", word)
    return not option and re.match(r"[A-Za-z_][\w.\[\]]*=", word) is None


def _take(line: PublishedLine, name: str, plain: str, value: str | None) -> None:
    if plain in WITHOUT_EFFECT:
        line.notes.append(f"--{name}: without effect; {WITHOUT_EFFECT[plain]}")
        return
    if plain in _OTHER_NAMES:
        line.notes.append(f"--{name}: taken as --{_OTHER_NAMES[plain]}")
        plain = _OTHER_NAMES[plain]
    if plain == "accelerator" and value is not None and value.startswith("ddp"):  # Lightning 1.0 to 1.4
        line.notes.append(f"--accelerator {one_line(value, 40)}: taken as --strategy")
        plain = "strategy"
    if plain in _TAKEN or plain in TRAINER:
        flag = value is None and plain in ("fast_dev_run", *_flags())
        if value is None and not flag:
            raise InputError(f"--{name}: give its value, such as --{name} 10 (see --help)")
        value = "true" if value is None else _truth(value)
        if plain in _TAKEN:
            line.taken[plain] = value
        else:
            line.settings.append(f"lightning.trainer.{plain}={value}")
        return
    if re.split(r"[.\[]", name)[0] in Training.model_fields:
        if value is None:
            raise InputError(f"--{name}: give its value, --{name} VALUE or {name}=VALUE")
        line.settings.append(f"{name}={_truth(value)}")
        return
    known = [*TRAINER, *WITHOUT_EFFECT, *_TAKEN]
    meant = get_close_matches(plain, known, 1, 0.8)
    hint = f"; did you mean --{meant[0]}?" if meant else ", nor one of Lightning's; settings are written key=value"
    raise InputError(f"--{one_line(name, 60)}: no such option{hint} (see --help)")


def _flags() -> list[str]:
    return [name for name, entry in TrainerParams.model_fields.items() if "bool" in str(entry.annotation)]


def _truth(value: str) -> str:
    """The published spellings of true and false, as YAML has them."""
    return "true" if value.lower() in _TRUE else "false" if value.lower() in _FALSE else value


def gpus_of(accelerator: str | None, devices: str | None) -> str:
    """``--gpus`` of Lightning's ``accelerator`` and ``devices``.

    Args:
        accelerator: ``cpu``, ``gpu``, ``cuda`` or ``auto``.
        devices: their number, indices with commas, or ``auto``.

    Raises:
        InputError: another accelerator, or not a number of devices.
    """
    accelerator, devices = accelerator or "auto", (devices or "auto").strip("[] ")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise InputError(f"--accelerator {one_line(accelerator, 40)}: choose cpu, gpu or auto")
    if devices in ("auto", "-1"):
        return "cpu" if accelerator == "cpu" else "auto"
    if "," in devices and accelerator != "cpu":
        return devices
    if not re.fullmatch(r"[1-9][0-9]{0,2}", devices):
        raise InputError(f"--devices {one_line(devices, 40)}: write a number of devices, or indices such as 0,1")
    return f"cpu:{devices}" if accelerator == "cpu" else ",".join(map(str, range(int(devices))))
