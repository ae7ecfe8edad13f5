"""From a YAML file and a checkpoint to a model."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cldm.config_schema import check_model
from cldm.control_ldm import ControlLDM
from cldm.data.hints import ENCODINGS, HintEncoder
from cldm.training.schema import check_training
from cldm.training.sections import Sections
from common.bands import bands_of
from common.classes import load_class_table
from common.configuration import plain, read_configuration
from common.errors import InputError
from common.schema import KeyPath, dotted, one_line, parse
from ldm.checkpoint import load_weights, read_bands, read_state_dict
from ldm.modules.encoders import TextEncoder
from ldm.targets import instantiate_from_config

log = logging.getLogger(__name__)
_have_run: dict[str, str] = {}  # models that ``outline`` has run in this process, and their shapes


def load_config(config: str | Path | DictConfig, classes: str | Path | None = None) -> DictConfig:
    """Reads a YAML file, or passes a config through; what it says of a model is checked.

    Args:
        config: the file, or its content.
        classes: class table in place of the one that it names.

    Raises:
        InputError: the file is missing, no YAML mapping, or says what cannot be; names file and key.
    """
    loaded = read_configuration([config])
    parse(loaded.values, Sections, loaded.source)
    if classes is not None:
        (loaded.values["model"].get("params") or {})["classes"] = str(classes)
    count_hint_channels(loaded.values, loaded.source)
    check_model(loaded.values["model"], loaded.source)
    return DictConfig(loaded.values)


def load_training_config(
    files: Sequence[str | Path | DictConfig], settings: Sequence[str] = (), table: Path | None = None
) -> DictConfig:
    """Merges a training's YAML files, later ones over earlier ones, then ``key=value`` settings, and checks the whole.

    Args:
        files: YAML files, or what they say.
        settings: ``key=value``.
        table: class table of a model for which none is named.

    Raises:
        InputError: what cannot be read, is not known or cannot be; names file or setting, and key.
    """
    merged = read_configuration(files, settings)
    params = (merged.values.get("model") or {}).get("params")
    if table is not None and isinstance(params, dict) and params.get("classes") is None:
        params["classes"] = str(table)
    count_hint_channels(merged.values, merged.source)
    check_training(merged.values, merged.source)
    lightning = merged.values["lightning"] = merged.values.get("lightning") or {}
    data = merged.values["data"]["params"]
    for section in (lightning.get("callbacks") or {}, lightning.get("modelcheckpoint") or {}, lightning, data):
        for name in [name for name, value in section.items() if value is None]:
            del section[name]  # "callbacks:" with nothing below it
    for section, name in ((lightning, "trainer"), (data["train"], "params"), (data.get("validation", {}), "params")):
        section[name] = section.get(name) or {}
    return DictConfig(merged.values)


def count_hint_channels(values: Any, source: Callable[[KeyPath], str]) -> None:
    """Writes into a configuration how many channels masks have, where ``hint_channels`` of the mask branch is null.

    Args:
        values: the whole configuration, not checked yet; changed in place.
        source: the file that says something.

    Raises:
        InputError: masks are encoded by a class table, which is not named.
    """
    try:
        params = values["model"]["params"]
        branch = params["control_stage_config"]["params"]
        unknown = branch["hint_channels"] is None
    except (KeyError, TypeError):
        return  # the checks that follow say what is wrong
    encoding, classes = params.get("hint_encoding", "index"), params.get("classes")
    if not unknown or encoding not in ENCODINGS:
        return
    if classes is None and encoding != "index":
        where: KeyPath = ("model", "params", "control_stage_config", "params", "hint_channels")
        raise InputError(
            f"{source(where)}, field {dotted(where)}: as many as masks have by hint_encoding {encoding}; name the "
            "class table (model.params.classes=TABLE, or ‹classes›): a built-in one or a classes.json"
        )
    table = None if classes is None else load_class_table(classes, encoding == "table")
    branch["hint_channels"] = HintEncoder(encoding, table).channels


def create_model(
    config: str | Path | DictConfig,
    checkpoint: str | Path | None = None,
    allow: Sequence[str] = (),
    use_ema: bool = False,
    **overrides: Any,
) -> ControlLDM:
    """Builds the model that a YAML file describes, and loads its weights.

    Args:
        config: path or config with a ``model`` entry; published files work unchanged.
        checkpoint: .ckpt, .safetensors or diffusers folder; None leaves random weights.
        allow: modules that the checkpoint may lack, or ``all``, see ``ldm.checkpoint.load_weights``.
        use_ema: take the checkpoint's running averages.
        **overrides: model parameters that win over the file's; ``classes`` also counts ``hint_channels: null``.

    Raises:
        InputError: config or checkpoint do not fit; the message lists what does not.
    """
    loaded = load_config(config, overrides.get("classes"))
    if overrides:
        loaded.model.params.update(plain(overrides))
        loaded = load_config(loaded)
    if checkpoint is not None:
        take_bands(loaded, Path(checkpoint), stated="bands" in overrides)
    name = "configuration" if isinstance(config, DictConfig) else str(config)
    described = repr(plain(loaded.model))
    if described not in _have_run:
        outline(loaded, name)
    state = None if checkpoint is None else read_state_dict(checkpoint, use_ema)  # refused before the model is built
    model = instantiate_from_config(plain(loaded.model))
    if _have_run.get(described) not in (None, _shapes(model)):  # a file that it names, as a class table, has changed
        outline(loaded, name)
    if state is not None:
        log.info(load_weights(model, state, allow, name=str(checkpoint)).summary())
    return model.eval()


def take_bands(config: DictConfig, checkpoint: Path, stated: bool = False) -> None:
    """What a checkpoint states of its images' bands goes into a configuration that states nothing.

    Args:
        config: changed in place.
        checkpoint: its file, or a folder, which states nothing.
        stated: the configuration's are what the user asks for, whatever the model was trained on.

    Raises:
        InputError: both state something, and not the same.
    """
    held = read_bands(checkpoint)
    if held is None or stated:
        return
    params = config.model.params
    own = bands_of(plain(params.get("bands")), "configuration, field model.params.bands")
    if own is None:
        params.bands = held.model_dump(exclude_defaults=True)
        return
    other = [name for name in ("ranges", "take", "scales", "offsets") if getattr(own, name) != getattr(held, name)]
    if other:
        raise InputError(
            f"{checkpoint}: was trained with other {', '.join(other)} of bands than model.params.bands of the "
            "configuration says; leave bands out of it, or name the run's own config.yaml"
        )


def outline(config: DictConfig, name: str = "configuration") -> ControlLDM:
    """The model without memory for its weights, run once: refuses within a second what cannot be built or cannot run.

    What has run is not run again in the same process: a training, for one, asks twice.

    Args:
        config: as ``load_config`` gave it.
        name: where it comes from, for messages.

    Raises:
        InputError: parts that do not fit together, or a model larger than this machine's memory; names the part.
    """
    entry = copy.deepcopy(plain(config.model))
    text = entry["params"].get("cond_stage_config", {}).get("params") or {}
    shape_is_known = text.pop("version", None) is None  # of a folder's or hub's weights it is not; they come later
    with torch.device("meta"):
        model = _or_refused(lambda: instantiate_from_config(entry), f"{name}, model")
    size = sum(weight.numel() * weight.element_size() for weight in (*model.parameters(), *model.buffers()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise InputError(
            f"{name}, model: its weights take {size / 2**30:,.0f} GiB, this machine has "
            f"{memory / 2**30:,.0f}; lower model_channels or channel_mult"
        )
    if isinstance(model, ControlLDM):
        described, shapes = repr(plain(config.model)), _shapes(model)
        if _have_run.get(described) != shapes:
            _run_once(model.to("meta"), shape_is_known, name)
            _have_run[described] = shapes
    return model


def _shapes(model: torch.nn.Module) -> str:
    return repr({key: tuple(value.shape) for key, value in model.state_dict().items()})


@torch.no_grad()
def _run_once(model: ControlLDM, with_text: bool, name: str) -> None:
    """From a small image to the image of a prediction, in shapes alone."""
    place = f"{name}, model.params"
    image = torch.empty(1, model.image_bands, 2 * model.multiple, 2 * model.multiple, device="meta")
    latent = _or_refused(lambda: model.image_latent(image), f"{place}.first_stage_config")
    unet = model.model.diffusion_model
    read = unet.transformer_options["context_dim"]
    text = torch.empty(1, 7, read, device="meta")
    encoder = model.cond_stage_model
    if with_text and isinstance(encoder, TextEncoder):
        tokens = torch.zeros(1, encoder.tokenizer.max_length, dtype=torch.long, device="meta")
        text = _or_refused(lambda: encoder.embed(tokens), f"{place}.cond_stage_config")
        if text.shape[-1] != read:
            raise InputError(
                f"{place}.unet_config.params.context_dim: {read}, but texts of cond_stage_config have "
                f"{text.shape[-1]} channels"
            )
    step = torch.zeros(1, dtype=torch.long, device="meta")
    hint_channels = model.control_model.hint_channels
    hint = torch.empty(1, hint_channels, *image.shape[2:], device="meta")

    def branch(part: Any, hint: torch.Tensor, place: str) -> Any:
        features = _or_refused(lambda: part.encode_hint(hint), place)
        if features.shape[2:] != latent.shape[2:]:
            found = image.shape[2] // features.shape[2]
            raise InputError(
                f"{place}.params: hint_scale, hint_factor: the hint's features have 1/{found} of the "
                f"image's size, its latent has 1/{model.factor}"
            )
        return _or_refused(lambda: part(latent, None, step, text, features), place)

    masks = branch(model.control_model, hint, f"{place}.control_stage_config")
    references = None
    if model.ssl_stage_model is not None:
        references = branch(model.ssl_stage_model, latent, f"{place}.ssl_stage_config")
    made = _or_refused(lambda: unet(latent, step, text, masks, references), f"{place}.unet_config")
    if made.shape != latent.shape:
        where = f"{place}.unet_config.params.out_channels"
        raise InputError(f"{where}: {made.shape[1]}, but the latent has {latent.shape[1]}")
    _or_refused(lambda: model.decode_first_stage(made), f"{place}.first_stage_config")


def _or_refused(make: Callable[[], Any], place: str) -> Any:
    """What ``make`` returns; whatever it trips over is the configuration's fault, and said in one line."""
    try:
        return make()
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except Exception as error:
        raise InputError(f"{place}: cannot be built or run ({one_line(error) or type(error).__name__})") from error
