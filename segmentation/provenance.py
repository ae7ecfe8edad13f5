"""What a training or test is made from: the settings that count, and the files that a config names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from common.files import digest
from segmentation.classes import class_table

TRAIN = ("model", "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "custom_hooks", "randomness")
TEST = ("test_dataloader", "test_cfg", "test_evaluator")
# moved data stay the same data: files are compared by content
_FOLDERS = ("data_root", "synthesized", "references", "pseudo_images", "pseudo_masks")
_FILES = ("img_path", "seg_map_path", "weight_path")


def _plain(config: Config, parts: tuple[str, ...]) -> dict[str, Any]:
    content = config.to_dict()
    chosen = {part: content.get(part) for part in parts}
    if isinstance(chosen.get("randomness"), dict):
        chosen["randomness"] = {key: value for key, value in chosen["randomness"].items() if key != "seed"}
    return chosen


def hash_of_settings(config: Config, parts: tuple[str, ...]) -> str:
    """A hash of some parts of a config; folders and the seed do not count, a class table by what it holds."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            result = {str(key): cleaned(item) for key, item in value.items() if key not in _FOLDERS}
            if isinstance(value.get("classes"), str):
                result["classes"] = class_table(value["classes"])
            return result
        return [cleaned(item) for item in value] if isinstance(value, (list, tuple)) else value

    return digest(json.dumps(cleaned(_plain(config, parts)), default=str, sort_keys=True))


def named_files(config: Config, parts: tuple[str, ...]) -> list[Path]:
    """Weights, palettes, lists and other files that parts of a config name, in a fixed order."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for item in value.values():
                yield from texts(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from texts(item)
        elif isinstance(value, str) and value and "\0" not in value and len(value) < 4096:
            yield value

    return sorted({Path(text) for text in texts(_plain(config, parts)) if Path(text).is_file()})


def data_files(loader: Any) -> list[Path]:
    """Images, masks and weight maps that a data loader's data sets read, each once, in the data sets' order."""

    def data_sets(tree: Any) -> Iterator[dict[str, Any]]:
        if isinstance(tree, dict):
            kind = DATASETS.get(tree["type"]) if isinstance(tree.get("type"), str) else tree.get("type")
            if isinstance(kind, type) and issubclass(kind, BaseSegDataset):
                yield tree
            else:
                for value in tree.values():
                    yield from data_sets(value)
        elif isinstance(tree, (list, tuple)):
            for value in tree:
                yield from data_sets(value)

    built = (DATASETS.build({**entry, "lazy_init": True}) for entry in data_sets(loader))
    items = (item for dataset in built for item in dataset.load_data_list())
    return [Path(path) for path in dict.fromkeys(item[key] for item in items for key in _FILES if item.get(key))]
