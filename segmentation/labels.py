"""What a segmentor's config makes of the ids in a mask file: one rule for training, testing, filtering and judging."""

from __future__ import annotations

import copy
import inspect
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmseg.registry import DATASETS, TRANSFORMS
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from common.classes import load_class_table
from common.errors import InputError
from common.images import Labels
from common.schema import one_line
from segmentation.trees import entries, with_pipeline

IGNORED = 255


@dataclass(frozen=True, eq=False)
class LabelRule:
    """Labels of the ids in mask files.

    Attributes:
        table: (256,) int16, the label of each id; -1 for an id that may not be.
        num_classes: C, the labels 0..C-1.
        ignored: the label that the head's losses leave out, beside 255.
        unscored: the label that the test's scores leave out.
        class_names: of the test set, none where the config has no test set.
        files: how its class table reads mask files, if it has one.
    """

    table: NDArray[Any]
    num_classes: int
    ignored: int = IGNORED
    unscored: int = IGNORED
    class_names: tuple[str, ...] = ()
    files: Labels | None = None

    def targets(self) -> NDArray[Any]:
        """(256,) uint8: the label of each id where losses count it, else 255."""
        counts = (self.table >= 0) & (self.table < self.num_classes) & (self.table != self.ignored)
        return np.where(counts, self.table, IGNORED).astype(np.uint8)

    def ids(self) -> NDArray[Any]:
        """(256,) uint8: the id in mask files of each label, the smallest of several; of 255, one to ignore.

        Other labels stay as they are.
        """
        ids = np.arange(256, dtype=np.uint8)
        for label in range(self.num_classes):
            if len(found := np.flatnonzero(self.table == label)):
                ids[label] = found[0]
        ids[IGNORED] = self.labels().id_to_ignore
        return ids

    def labels(self) -> Labels:
        """How mask files are read for the losses, and which ids they may hold."""
        targets = self.targets().astype(int)
        of_id = tuple(np.where(self.table < 0, -1, targets).tolist())
        return replace(self.files or Labels(self.num_classes), num_classes=self.num_classes, of_id=of_id)


def label_rule(config: Config, num_classes: int, head: nn.Module | None = None) -> LabelRule:
    """The rule of a config: of its test set and the step that loads masks, of its head, of its scores.

    Args:
        config: an mmseg config.
        num_classes: C.
        head: the built decode head, which knows what its losses leave out.

    Raises:
        InputError: the test set or the step cannot be built, or contradict each other.
    """
    dataset = test_dataset(config)
    try:
        names: tuple[str, ...] = ()
        files = Labels(num_classes)
        if dataset and "classes" in dataset:  # a MaskDataset: its class table says what each id means
            classes = load_class_table(dataset["classes"])
            reads = classes.labels.reducing_zero(bool(dataset.get("reduce_zero_label")))
            steps = _annotation_steps(config)
            if any(step.get("reduce_zero_label") not in (None, reads.reduce_zero) for step in steps):
                raise InputError(
                    f"{config.filename}: reduce_zero_label is {reads.reduce_zero} in the test set, not in "
                    "the step that loads masks; say the same in both"
                )
            names, table, files = classes.names, reads.table, reads
        else:
            reduce_zero_label, label_map, names = _label_settings(dataset) if dataset else (False, None, ())
            table = _label_of_each_id(_annotation_steps(config), reduce_zero_label, label_map)
    except InputError:
        raise
    except Exception as error:  # classes that a config names may raise anything
        raise InputError(
            f"{config.filename}: the test set's masks cannot be read as it says: "
            f"{one_line(error) or type(error).__name__}"
        ) from error
    evaluator = config.get("test_evaluator")
    metrics = [*entries(evaluator, "IoUMetric"), *entries(evaluator, "ClassIoUMetric")]
    ignored = getattr(head, "ignore_index", IGNORED)
    unscored = metrics[0].get("ignore_index", IGNORED) if metrics else IGNORED
    known = (table < num_classes) | np.isin(table, [ignored, unscored, IGNORED])
    return LabelRule(np.where(known, table, -1), num_classes, ignored, unscored, tuple(map(str, names)), files)


def test_dataset(config: Config) -> Any:
    """The first data set of the config's test loader, whatever wraps it; None where there is none."""

    def first(tree: Any) -> Any:
        if isinstance(tree, (list, tuple)):
            return next((found for part in tree if (found := first(part))), None)
        if not isinstance(tree, dict) or "type" not in tree:
            return None
        return first(tree.get("dataset")) or first(tree.get("datasets")) or tree

    return first((config.get("test_dataloader") or {}).get("dataset"))


def pipeline(config: Config) -> list[dict[str, Any]]:
    """The steps that prepare an image of the test set; mmseg's plain ones where the config names none."""
    steps = (test_dataset(config) or {}).get("pipeline") or config.get("test_pipeline")
    return list(steps or [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}])


def loads_masks(step: dict[str, Any]) -> bool:
    """Whether a step of a pipeline loads masks."""
    return "Annotations" in str(step.get("type"))


def _annotation_steps(config: Config) -> list[dict[str, Any]]:
    training = [entry["pipeline"] or [] for entry in with_pipeline(config.get("train_dataloader"))]
    for steps in (pipeline(config), *training, config.get("train_pipeline") or []):
        if found := [step for step in steps if loads_masks(step)]:
            return found
    return [{"type": "LoadAnnotations"}]


def _label_settings(dataset: Any) -> tuple[bool, dict[int, int] | None, tuple[str, ...]]:
    """``reduce_zero_label``, map of labels and class names, as the data set would have them; no file is looked for."""
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    if kind is None:
        raise InputError(f"no data set {dataset['type']} is registered; is an import of custom_imports missing?")
    metainfo = kind._load_metainfo(copy.deepcopy(dataset.get("metainfo")))
    names = metainfo.get("classes")
    reduce_zero_label = dataset.get("reduce_zero_label")
    if reduce_zero_label is None:
        reduce_zero_label = _default(kind, "reduce_zero_label")
    return bool(reduce_zero_label), kind.get_label_map(names), tuple(map(str, names or ()))


def _default(kind: type, name: str) -> Any:
    for base in kind.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(name)  # type: ignore[misc]
        if parameter is not None:
            return parameter.default
    return None


def _label_of_each_id(
    steps: list[dict[str, Any]], reduce_zero_label: bool, label_map: dict[int, int] | None
) -> NDArray[Any]:
    """(256,) int16: what the config's own step makes of a mask that shows each id once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ids.png")
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
        results: Any = {
            "img_path": str(path),
            "seg_map_path": str(path),
            "label_map": label_map,
            "reduce_zero_label": reduce_zero_label,
            "seg_fields": [],
        }
        for step in steps:
            results = TRANSFORMS.build(step)(results)
    labels = np.asarray(results["gt_seg_map"])
    if labels.shape != (16, 16):
        raise InputError(f"a mask of 16 x 16 px is loaded as {labels.shape}")
    return labels.ravel().astype(np.uint8).astype(np.int16)
