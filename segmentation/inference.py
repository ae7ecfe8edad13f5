"""What a segmentor makes of images: one function for all commands, by the config's own preparation and rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import imresize
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import BaseModel
from mmengine.runner.amp import autocast
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS, TRANSFORMS
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from common.bands import Bands, see
from common.config_options import ConfigOptions
from common.devices import pick_device
from common.errors import InputError
from common.files import digest
from common.images import Labels
from common.pixels import Seen
from common.processes import bounded, end_with_parent
from common.schema import one_line
from segmentation.bands import bands_of_config
from segmentation.checkpoint import load_weights, weights_file, with_its_dvae
from segmentation.config import load_config
from segmentation.config_changes import set_data
from segmentation.labels import IGNORED, LabelRule, label_rule, loads_masks, pipeline
from segmentation.scores import gives_probabilities, logits_of
from segmentation.views import MeanOfViews, view_steps, without_masks


@dataclass(frozen=True, eq=False)
class Segmentor:
    """A segmentor ready to predict, with what its config decides beside its weights.

    Attributes:
        model: in eval mode, on its device.
        config: the whole config.
        class_names: C names: the test set's, else the weights', else ids.
        rule: what the ids in masks mean.
        weights: their file.
        views: how several views of an image are prepared (test-time augmentation); none for the image as it is.
    """

    model: BaseModel
    config: Config
    class_names: list[str]
    rule: LabelRule
    weights: Path
    views: tuple[dict[str, Any], ...] = ()

    @property
    def num_classes(self) -> int:
        """C, the classes that it tells apart."""
        return self.rule.num_classes

    def settings(self) -> str:
        """A digest of all in the config that changes what is predicted or counted; weights aside."""
        shares = gives_probabilities(getattr(self.model, "module", self.model))
        return digest(
            self.config.model.to_dict(),
            list(self.views) or test_steps(self.config),
            self.half_precision(),
            self.rule.targets().tolist(),
            self.rule.ignored,
            self.class_names,
            *(["logarithms of probabilities"] if shares else []),  # they were once taken for logits
        )

    def weight_files(self) -> tuple[Path, ...]:
        """The file of its weights."""
        return (self.weights,)

    @property
    def bands(self) -> Bands | None:
        """What its config states of images' bands; None for three of 8 bits."""
        return bands_of_config(self.config)

    @property
    def look(self) -> Callable[[Path], Seen]:
        """Checks an image as it is read for this segmentor, before its config's further steps; in any process."""
        return partial(see, bands=self.bands)

    def labels(self) -> Labels:
        """The class of each id in mask files."""
        return self.rule.labels()

    def pixel_losses(
        self, files: Sequence[tuple[Path, Path]], batches: Sequence[Sequence[int]], num_workers: int = 4
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Index, cross-entropy of each pixel in nats float32 (H, W), and mask ids (H, W); see ``segment``."""
        targets = self.rule.targets()
        for found in segment(self, files, batches, num_workers):
            yield found.index, pixel_losses(found.logits, targets[found.ids]), found.ids

    def predictions(
        self, files: Sequence[tuple[Path, Path]], batch_size: int | None = None, num_workers: int = 4
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Classes found and true labels (H, W) of images and masks; ``rule.unscored`` is the label of no class.

        Args:
            files: images and masks.
            batch_size: images a batch; as in the config's own test by default.
            num_workers: processes that read images.
        """
        size = batch_size or self.batch_size()
        batches = [range(start, min(start + size, len(files))) for start in range(0, len(files), size)]
        for found in segment(self, files, batches, num_workers):
            yield found.classes, self.rule.table[found.ids]

    def batch_size(self) -> int:
        """Images a batch in the config's own test."""
        return int((self.config.get("test_dataloader") or {}).get("batch_size", 1))

    def half_precision(self) -> bool:
        """Whether the config's own test is in half precision."""
        return bool((self.config.get("test_cfg") or {}).get("fp16", False))

    @torch.inference_mode()
    def test_step(self, data: dict[str, list[Any]]) -> list[Any]:
        """mmseg's samples with ``seg_logits`` and ``pred_sem_seg``, decided as in the config's own test."""
        with autocast(enabled=self.half_precision()):
            return self.model.test_step(data)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a segmentor found in one image.

    Attributes:
        index: of the item.
        ids: the mask as its file has it, uint8 (H, W); 255 everywhere for an image without one.
        classes: ids that the segmentor decided for, uint8 (H, W).
        logits: of each class, float (C, H, W) on the segmentor's device, C at least 2.
    """

    index: int
    ids: NDArray[Any]
    classes: NDArray[Any]
    logits: torch.Tensor


def open_segmentor(
    config: str | Path | Config,
    checkpoint: str | Path,
    settings: ConfigOptions | None = None,
    classes: str | Path | None = None,
    device: str = "auto",
) -> Segmentor:
    """The segmentor of a config and its weights.

    Args:
        config: mmseg config.
        checkpoint: weights.
        settings: what replaces settings of the config.
        classes: class table; the config's by default.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: see ``load_config`` and ``load_segmentor``.
    """
    settings = settings or ConfigOptions()
    read = load_config(config, settings.cfg_options, settings.trust_config)
    set_data(read, classes=None if classes is None else str(classes))
    return load_segmentor(read, str(checkpoint), pick_device(device))


def load_segmentor(config: Config, checkpoint: str, device: str) -> Segmentor:
    """Builds a config's segmentor and loads its weights.

    Raises:
        InputError: the config's model is no segmentor, its test cannot be followed, or the weights are another model's.
    """
    weights = weights_file(checkpoint)
    model_config = Config(config.model.to_dict())
    for part, key in ((model_config, "pretrained"), (model_config.get("backbone") or {}, "init_cfg")):
        part.pop(key, None)  # the checkpoint replaces them: nothing to download
    if str((model_config.get("backbone") or {}).get("type")).endswith("TIMMBackbone"):
        model_config.backbone.pretrained = False
    try:
        model = MODELS.build(with_its_dvae(model_config._cfg_dict, checkpoint))
    except InputError:
        raise
    except Exception as error:  # a model's constructor may raise anything
        raise InputError(f"{config.filename}: model {model_config.type} cannot be built: {one_line(error)}") from error
    if not isinstance(model, BaseSegmentor):
        raise InputError(f"{config.filename}: model {model_config.type} is not a segmentor of mmseg")
    meta = load_weights(model, checkpoint)
    head = getattr(model, "decode_head", None)
    head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
    count = getattr(model, "predicted_classes", None) or getattr(model, "num_classes", None)
    if not isinstance(count, int) or not 2 <= count <= 255:
        raise InputError(
            f"{config.filename}: model {model_config.type} tells {count} classes apart; must be 2 to 255 "
            "(one of them for what belongs to none)"
        )
    rule = label_rule(config, count, head)
    test_pipeline(config)
    names = _class_names(config, rule, checkpoint, meta)
    return Segmentor(model.to(device).eval(), config, names, rule, weights)


def from_views(segmentor: Segmentor) -> Segmentor:
    """A segmentor that predicts from several views of each image, see ``segmentation.views``."""
    model = MeanOfViews(module=segmentor.model).eval()
    return replace(segmentor, model=model, views=tuple(without_masks(view_steps(segmentor.config))))


def _class_names(config: Config, rule: LabelRule, checkpoint: str, meta: Any) -> list[str]:
    stored = meta.get("dataset_meta") if isinstance(meta, dict) else None
    stored = stored.get("classes") if isinstance(stored, dict) else None
    fits = isinstance(stored, (list, tuple)) and len(stored) == rule.num_classes
    for names, where in ((rule.class_names, str(config.filename)), (stored if fits else (), checkpoint)):
        if len(names or ()) == rule.num_classes:
            found = [str(name) for name in names or ()]
            if twice := sorted({name for name in found if found.count(name) > 1}):
                raise InputError(
                    f"{where}: two classes named {one_line(twice[0], 60)}; give each its own name, or "
                    "name a class table with ‹classes›"
                )
            return found
    return [str(c) for c in range(rule.num_classes)]


@TRANSFORMS.register_module()
class MatchMask(BaseTransform):
    """Brings an image to its mask's size (``mask_size``), and so to the ground resolution of the real images."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img`` (H, W) or (H, W, bands) and the shapes that name its size."""
        if "mask_size" not in results:
            return results
        height, width = results["mask_size"]
        image = results["img"]
        if image.shape[:2] != (height, width):
            resized = imresize(image, (width, height), interpolation="bicubic")
            results["img"] = resized[..., None] if image.ndim > resized.ndim else resized
            results["img_shape"] = results["ori_shape"] = (height, width)
            if "valid" in results:
                valid = Image.fromarray(results["valid"]).resize((width, height), Image.Resampling.NEAREST)
                results["valid"] = np.asarray(valid)
        return results


def test_steps(config: Config) -> list[dict[str, Any]]:
    """The config's preparation of test images, step by step, without the loading of masks.

    Raises:
        InputError: it makes several pictures of one.
    """
    steps = pipeline(config)
    if any("TestTimeAug" in str(step.get("type")) for step in steps):
        raise InputError(
            f"{config.filename}: the test pipeline has TestTimeAug, which is not supported; take a pipeline without it"
        )
    return [step for step in steps if not loads_masks(step)]


def test_pipeline(config: Config, views: Sequence[dict[str, Any]] = ()) -> Compose:
    """The same as a function, from images at their masks' size; of several views, if given.

    Raises:
        InputError: a step cannot be built.
    """
    load, *others = views or test_steps(config)
    try:
        return Compose([load, {"type": "MatchMask"}, *others])
    except Exception as error:  # a step's constructor may raise anything
        raise InputError(f"{config.filename}: the test pipeline cannot be built: {one_line(error)}") from error


class _Images(Dataset[Any]):
    def __init__(self, items: Sequence[tuple[Path, Path | None]], prepare: Compose, labels: Labels) -> None:
        self.items, self.prepare, self.labels = items, prepare, labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any], NDArray[Any], NDArray[np.bool_] | None] | str:
        image, mask_file = self.items[index]
        given: dict[str, Any] = {"img_path": str(image)}  # our reader adds where the image has data
        try:
            if mask_file is None:
                prepared = self.prepare(given)
                mask = np.full(_of_first_view(prepared["data_samples"]).ori_shape, IGNORED, np.uint8)
            else:
                mask = self.labels.file_ids(mask_file)
                given["mask_size"] = mask.shape
                prepared = self.prepare(given)
            gaps = None if given.get("valid", np.True_).all() else ~given["valid"]
            if gaps is not None and mask_file is not None:
                mask = np.where(gaps, self.labels.id_to_ignore, mask).astype(np.uint8)
        except InputError as error:
            return str(error)
        except Exception as error:  # the steps are the config's; one line, also from a worker
            return f"{image}: the config's test pipeline cannot prepare it ({one_line(error) or repr(error)})"
        return index, prepared, mask, gaps if mask_file is None else None


def _of_first_view(value: Any) -> Any:
    """The first view's part of a prepared image."""
    return value[0] if isinstance(value, list) else value


def segment(
    segmentor: Segmentor,
    items: Sequence[tuple[Path, Path | None]],
    batches: Sequence[Sequence[int]],
    num_workers: int = 4,
) -> Iterator[Prediction]:
    """Runs the segmentor over images of any sizes; an image is first brought to its mask's size.

    What is found in an image depends on its batch by the last bits of a sum, so the caller says which images share one.

    Args:
        segmentor: see ``load_segmentor``.
        items: image and mask files; None for an image that has no mask, and is taken at its own size.
        batches: indices of the items of each batch; its images of one size that follow one another go together.
        num_workers: processes that read images.

    Raises:
        InputError: a file cannot be read or prepared; the segmentor cannot take it, or answers with no numbers.
    """
    config = segmentor.config
    images = _Images(items, test_pipeline(config, segmentor.views), segmentor.rule.labels())
    loader = DataLoader(
        images,
        batch_sampler=[list(batch) for batch in batches],
        num_workers=bounded(num_workers, len(batches)),
        collate_fn=list,
        worker_init_fn=_start_worker,
    )
    torch.backends.cudnn.benchmark = False  # it chooses algorithms by measured speed: other sums in every run
    for batch in loader:
        if wrong := next((item for item in batch if isinstance(item, str)), None):
            raise InputError(wrong)
        by_size = groupby(batch, key=lambda item: _of_first_view(item[1]["inputs"]).shape)
        for group in (list(items_of_one_size) for _, items_of_one_size in by_size):
            data = {key: [item[1][key] for item in group] for key in ("inputs", "data_samples")}
            if segmentor.views:  # mmseg wants, for each view, that view of every image
                data = {key: list(map(list, zip(*values, strict=True))) for key, values in data.items()}
            try:
                samples = segmentor.test_step(data)
            except (RuntimeError, AssertionError) as error:  # an architecture may assert what sides it takes
                raise InputError(
                    f"{items[group[0][0]][0]}: the segmentor of {config.filename} cannot take it ({one_line(error)})"
                ) from error
            for (index, _, ids, gaps), sample in zip(group, samples, strict=True):
                found = prediction_of(index, ids, sample, items[index][0], segmentor)
                if gaps is not None:
                    found.classes[gaps] = IGNORED
                yield found


def _start_worker(_: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)


def prediction_of(index: int, ids: NDArray[Any], sample: Any, image: Path, segmentor: Segmentor) -> Prediction:
    """One of mmseg's samples as a prediction.

    Raises:
        InputError: it has no logits, or not finite ones.
    """
    if "seg_logits" not in sample:
        raise InputError(
            f"{segmentor.config.filename}: {segmentor.config.model.type} predicts no logits; name another segmentor"
        )
    if sample.seg_logits.data.amax().isnan():  # a maximum is one of them if any is; no copy of all is made
        raise InputError(f"{image}: the segmentor's output is not finite here; are its weights sound?")
    classes = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint8)
    return Prediction(index, ids, classes, logits_of(segmentor.model, sample))


def pixel_losses(logits: torch.Tensor, labels: NDArray[Any]) -> NDArray[Any]:
    """Cross-entropy of each pixel in nats, float32 (H, W), of logits (C, H, W) and labels uint8 (H, W); 0 at 255."""
    target = torch.from_numpy(labels).to(logits.device, torch.long)
    return F.cross_entropy(logits[None].float(), target[None], ignore_index=255, reduction="none")[0].cpu().numpy()
