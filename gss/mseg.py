"""MSeg (Lambert et al., CVPR 2020): data sets of many taxonomies in one of 194 universal classes.

The tables are files of the mseg-api project, in its own layout: ``class_remapping_files/MSeg_master.tsv``, a row a
universal class, a column a data set; ``dataset_lists/<data set>/<data set>_names.txt``, the classes by id; and lists of
pairs, ``dataset_lists/<data set>/list/<split>.txt``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS, METRICS
from torch import Tensor

from common.errors import InputError
from common.images import IGNORE, Labels
from common.lists import locate, read_lines
from common.schema import one_line

UNLABELED = "unlabeled"  # the universal name of what is ignored


def read_taxonomy(path: str) -> tuple[list[str], dict[str, list[str]]]:
    """Reads a taxonomy: tab-separated, a row a universal class, the columns ``universal`` and one a data set.

    A cell names the data set's class that the universal class belongs to; an empty cell, none. The table of MSeg
    (``MSeg_master.tsv``) is such a file; its other columns do no harm.

    Returns:
        The universal names in order, ``unlabeled`` left out; and, by column, the cells in the same order.

    Raises:
        InputError: no such file, no column ``universal``, a short row, or a universal class twice.
    """
    rows = [row for row in _rows(path) if row["universal"] != UNLABELED]
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    if not rows:
        raise InputError(f"taxonomy {path}: no universal class in it")
    return columns["universal"], columns


def _rows(path: str) -> list[dict[str, str]]:
    """The table's rows, cells without blanks around them; rows without a universal class left out."""
    shown = one_line(path, 500)
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = [(reader.line_num, row) for row in reader]
            names = reader.fieldnames or []
    except OSError as error:
        raise InputError(f"taxonomy {shown}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"taxonomy {shown}: no tab-separated text in UTF-8 ({one_line(error)})") from error
    if not rows or "universal" not in names:
        raise InputError(f"taxonomy {shown}: needs tab-separated columns, one of them 'universal'")
    found: dict[str, dict[str, str]] = {}
    for line, row in rows:
        cells = {name: (row[name] or "").strip() for name in names if name}
        universal = cells["universal"]
        if not universal:
            continue
        if universal in found:
            raise InputError(f"taxonomy {shown}: line {line}: universal class {one_line(universal, 60)} a second time")
        found[universal] = cells
    return list(found.values())


def read_names(path: Path) -> list[str]:
    """The classes of a data set in the order of their ids, one a line.

    Raises:
        InputError: no such file, a class twice, or more classes than a mask has ids.
    """
    names = [line.strip() for _, line in read_lines(path)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: class {one_line(twice, 60)} stands there twice; each line is another id")
    if not 2 <= len(names) <= IGNORE:
        raise InputError(f"{path}: {len(names)} classes; must be 2 to {IGNORE}, one a line")
    return names


def names_of(taxonomy: str, dataset: str) -> Path:
    """Where the mseg-api has the classes of a data set, from where it has the taxonomy."""
    return _lists(taxonomy, dataset) / f"{dataset}_names.txt"


def _lists(taxonomy: str, dataset: str) -> Path:
    return Path(taxonomy).parent.parent / "dataset_lists" / dataset


def universal_ids(taxonomy: str, dataset: str, names: Sequence[str]) -> dict[int, int]:
    """The universal id of each id of a training set, as the mseg-api's ``ToUniversalLabel`` gives it.

    Args:
        taxonomy: see ``read_taxonomy``; a cell names one class, or several as ``{car, van}``.
        dataset: its column.
        names: the data set's classes by id.

    Returns:
        One entry an id, and 255 for 255; classes that have no universal one are ignored (255).

    Raises:
        InputError: no such column, or a cell names no class of the data set.
    """
    rows = _rows(taxonomy)
    if dataset not in rows[0]:
        raise InputError(f"taxonomy {taxonomy}: no column {dataset}; it has {', '.join(rows[0])}")
    ids = dict.fromkeys([*range(len(names)), IGNORE], IGNORE)
    known = {name: number for number, name in enumerate(names)}
    universal = 0
    for row in rows:
        target = IGNORE if row["universal"] == UNLABELED else universal
        universal += target != IGNORE
        for name in _cell(row[dataset]):
            if name not in known:
                raise InputError(
                    f"taxonomy {taxonomy}: column {dataset}: {one_line(name, 60)}, of universal class "
                    f"{row['universal']!r}, is no class of {names_of(taxonomy, dataset)}; take both files "
                    "from one version of the mseg-api"
                )
            ids[known[name]] = target
    return ids


def _cell(text: str) -> list[str]:
    inner = text[1:-1].split(",") if text.startswith("{") and text.endswith("}") else [text]
    return [name.strip() for name in inner if name.strip()]


def class_map(columns: dict[str, list[str]], name: str, classes: Sequence[str], path: str, whole: bool) -> Tensor:
    """0/1 matrix (universal classes, classes of a test set): which probabilities are summed.

    Args:
        columns: of the taxonomy.
        name: the test set's column.
        classes: its classes by id.
        path: of the taxonomy, for messages.
        whole: ``classes`` are all of the test set, so that each cell is one of them; some may have no universal class,
            and are never predicted.

    Raises:
        InputError: no such column, a cell that cannot be used, or a class that no cell names.
    """
    if name not in columns:
        raise InputError(f"taxonomy {path}: no column {name}; it has {', '.join(columns)}")
    matrix = torch.zeros(len(columns[name]), len(classes))
    for row, cell in enumerate(columns[name]):
        if cell in classes:
            matrix[row, list(classes).index(cell)] = 1
        elif cell.startswith("{"):
            raise InputError(
                f"taxonomy {path}: column {name}: {cell} stands for universal class {columns['universal'][row]!r}; "
                "a test set's column names one class a row"
            )
        elif cell and whole:
            raise InputError(
                f"taxonomy {path}: column {name}: {one_line(cell, 60)} is no class of "
                f"{names_of(path, name)}; take both files from one version of the mseg-api"
            )
    lost = [label for label, count in zip(classes, matrix.sum(0), strict=True) if count == 0]
    if lost and not whole:
        raise InputError(f"taxonomy {path}: column {name}: no universal class belongs to {', '.join(lost)}")
    return matrix


def domain_classes(taxonomy: str, domains: dict[str, list[str]] | Sequence[str]) -> dict[str, list[str]]:
    """Classes of test sets: as given, or as the mseg-api lists them where only names of test sets are given."""
    if isinstance(domains, dict):
        return {name: list(classes) for name, classes in domains.items()}
    return {name: read_names(names_of(taxonomy, name)) for name in domains}


@DATASETS.register_module()
class MSegDataset(BaseSegDataset):
    """A data set of MSeg, its masks in universal ids, or, to test on it, in its own.

    Args:
        dataset_name: as the mseg-api calls it, ``ade20k-150-relabeled``; also the taxonomy's column.
        taxonomy: ``MSeg_master.tsv``, in the mseg-api's folders.
        names: file of the classes by id; the mseg-api's where none is given.
        universal: masks become universal ids (training); else they stay, and samples carry ``domain``.
        split: takes the mseg-api's list of this name for the data set.
        ann_file: a list, instead: a line has the stem of a pair, or image and mask below ``data_root``. With neither,
            all images of the folder.
        img_prefix: what an image's name has before the stem.
        seg_map_prefix: the same for masks.
        follow_links: links below the data root may lead to files outside it.
        **kwargs: see ``BaseSegDataset``: ``data_root``, ``data_prefix``, ``img_suffix``, ``seg_map_suffix``.

    Raises:
        InputError: a table or a list cannot be used, or a file is missing.
    """

    def __init__(
        self,
        dataset_name: str,
        taxonomy: str,
        names: str | None = None,
        universal: bool = True,
        split: str | None = None,
        img_prefix: str = "",
        seg_map_prefix: str = "",
        follow_links: bool = False,
        **kwargs: Any,
    ) -> None:
        self.dataset_name, self.follow_links, self.prefixes = dataset_name, follow_links, (img_prefix, seg_map_prefix)
        own = read_names(Path(names) if names else names_of(taxonomy, dataset_name))
        self.labels = Labels(len(own))
        self.universal = universal_ids(taxonomy, dataset_name, own) if universal else None
        if split and not kwargs.get("ann_file"):
            kwargs["ann_file"] = str((_lists(taxonomy, dataset_name) / "list" / f"{split}.txt").absolute())
        classes = read_taxonomy(taxonomy)[0] if universal else own
        if self.universal:
            self.labels = Labels(len(classes), of_id=tuple(self.universal.get(number, -1) for number in range(256)))
        super().__init__(metainfo={"classes": classes}, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry a pair, ``img_path`` and ``seg_map_path`` among others."""
        pairs = list(self._listed() if self.ann_file else self._found())
        if not pairs:
            raise InputError(f"{self.ann_file or self.data_prefix['img_path']}: no pair of {self.dataset_name} there")
        item = {
            "label_map": self.universal,
            "labels": self.labels,
            "reduce_zero_label": False,
            "domain": None if self.universal else self.dataset_name,
        }
        return [{"img_path": str(image), "seg_map_path": str(mask), "seg_fields": [], **item} for image, mask in pairs]

    def _listed(self) -> Iterator[tuple[Path, Path]]:
        for number, line in read_lines(Path(self.ann_file)):
            words = line.split()
            try:
                if len(words) > 2:
                    raise ValueError(f"{len(words)} words; write the stem of a pair, or image and mask")
                if len(words) == 2:
                    root = Path(self.data_root or ".")
                    image, mask = (locate(word, root, self.follow_links) for word in words)
                else:
                    image, mask = self._pair(words[0])
            except ValueError as error:
                raise InputError(f"{self.ann_file}: line {number}: {self._own_words(error)}") from error
            yield image, mask

    def _found(self) -> Iterator[tuple[Path, Path]]:
        folder, prefix = Path(self.data_prefix["img_path"]), self.prefixes[0]
        if not folder.is_dir():
            raise InputError(f"{self.dataset_name}: no such folder {one_line(folder, 500)}")
        for path in sorted(folder.rglob(f"{prefix}*{self.img_suffix}")):
            stem = path.name[len(prefix) : len(path.name) - len(self.img_suffix)]
            if path.name.startswith("."):
                continue
            try:
                yield self._pair((path.parent.relative_to(folder) / stem).as_posix())
            except ValueError as error:
                raise InputError(f"{self.dataset_name}: {self._own_words(error)}") from error

    def _pair(self, stem: str) -> tuple[Path, Path]:
        """Image and mask of a stem, which may have folders."""
        parts = zip(("img_path", "seg_map_path"), self.prefixes, (self.img_suffix, self.seg_map_suffix), strict=True)
        place = PurePosixPath(stem)
        image, mask = (
            locate(str(place.parent / f"{prefix}{place.name}{suffix}"), Path(self.data_prefix[key]), self.follow_links)
            for key, prefix, suffix in parts
        )
        return image, mask

    @staticmethod
    def _own_words(error: ValueError) -> str:
        return str(error).replace("with follow_links", "with follow_links=True of the config's MSegDataset")


@METRICS.register_module()
class MSegMetric(BaseMetric):
    """IoU of several test sets, each in classes of its own, and the harmonic mean of their mIoU.

    Args:
        taxonomy: see ``MSegDataset``.
        domains: see ``MultiDomainEncoderDecoder``.
    """

    default_prefix = None

    def __init__(self, taxonomy: str, domains: dict[str, list[str]] | Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.domains = domain_classes(taxonomy, domains)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Counts pixels of samples with ``pred_sem_seg``, ``gt_sem_seg`` and ``domain``."""
        for sample in data_samples:
            domain = sample.get("domain")
            if domain not in self.domains:
                raise InputError(
                    f"MSegMetric: a sample is of domain {domain}, not of {', '.join(self.domains)}; have "
                    "PackSegInputs keep it (meta_keys), and test on an MSegDataset with universal=False"
                )
            found = sample["pred_sem_seg"]["data"].squeeze()
            true = sample["gt_sem_seg"]["data"].squeeze().to(found)
            areas = IoUMetric.intersect_and_union(found, true, len(self.domains[domain]), IGNORE)
            self.results.append((domain, torch.stack([area.double() for area in areas])))

    def compute_metrics(self, results: list[tuple[str, Tensor]]) -> dict[str, float]:
        """``h_mean``, and of each test set ``<name>/mIoU``, ``/mAcc``, ``/aAcc``, ``/IoU/<class>``, ``/Acc/<class>``.

        A class that is neither there nor found is left out; a test set without pixels has no score, nor has the mean.
        """
        scores: dict[str, float] = {}
        for domain, classes in self.domains.items():
            zero = torch.zeros(4, len(classes), dtype=torch.float64)
            hits, union, _, true = sum((areas for name, areas in results if name == domain), zero)
            rates = {"IoU": hits / union, "Acc": hits / true}
            scores[f"{domain}/aAcc"] = float(hits.sum() / true.sum())
            scores |= {f"{domain}/m{name}": float(values.nanmean()) for name, values in rates.items()}
            scores |= {
                f"{domain}/{name}/{label}": float(value)
                for name, values in rates.items()
                for label, value in zip(classes, values, strict=True)
            }
        means = torch.tensor([scores[f"{domain}/mIoU"] for domain in self.domains], dtype=torch.float64)
        scores["h_mean"] = float(len(means) / (1 / means).sum())
        rows = [*zip(self.domains, means.tolist(), strict=True), ("harmonic mean", scores["h_mean"])]
        print_log("mIoU in percent:\n" + "\n".join(f"{name:20} {100 * value:6.2f}" for name, value in rows), "current")
        return scores
