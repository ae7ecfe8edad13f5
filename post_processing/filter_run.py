"""The filter at work: measures real images, filters synthesized masks, reports; stops at any moment and goes on."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from common.arrays import read_array, write_array
from common.errors import InputError
from common.files import atomic_path, write_json
from common.images import Labels
from common.journal import sealed
from common.pairing import Pair
from common.ranks import Ranks
from post_processing import filter_rule as filtering
from post_processing.filter_report import filter_figure, filter_statistics
from post_processing.filter_state import (
    BINS,
    REAL_LOSS,
    STATS,
    FilteredRecord,
    RealLoss,
    RealRecord,
    State,
    file_stamp,
    read_real_loss,
)

HISTOGRAM_IMAGES = 500  # images of each kind whose losses enter the figure
_LARGEST = float(np.finfo(np.float16).max)

# pairs, batches of their indices -> index, loss float32 (H, W), the mask's ids uint8 (H, W); batch by batch
Losses = Callable[[Sequence[Pair], Sequence[Sequence[int]]], Iterable[tuple[int, NDArray[Any], NDArray[Any]]]]


@dataclass(frozen=True, eq=False)
class Source:
    """Where losses come from: a segmentor, or files of an earlier run.

    Attributes:
        classes: C names.
        labels: the class of each id in mask files.
        losses: makes them.
        batch_size: images that share a batch; always the same ones, so that a stopped run gives the same numbers.
    """

    classes: Sequence[str]
    labels: Labels
    losses: Losses
    batch_size: int = 1

    def label_of_id(self) -> list[int] | None:
        """The labels' table for files that others read; None where ids are class ids."""
        plain = (self.labels.table == Labels(len(self.classes)).table).all()
        return None if plain else self.labels.table.tolist()

    def dropped(self) -> int:
        """The id that files have for pixels to ignore: 255, where that is one."""
        ignored = np.flatnonzero(self.labels.table == filtering.IGNORE)
        return int(ignored[-1]) if len(ignored) else filtering.IGNORE


@dataclass(frozen=True)
class Rule:
    """Tolerance margin, what becomes of classes without real pixels, and where masks and losses go."""

    margin: float
    unseen: str
    out: Path
    save_loss: Path | None = None

    def files(self, name: str) -> list[Path]:
        """The files that are written for an image."""
        return [self.out / f"{name}.png", *([self.save_loss / f"{name}.npy"] if self.save_loss else [])]


def measure_real(source: Source, pairs: Sequence[Pair], state: State, ranks: Ranks) -> RealLoss:
    """Mean loss of each class over all real pixels, pixels of each class, and the losses' distribution."""
    stamps, shown = {pair.name: state.stamp(pair) for pair in pairs}, _in_figure(pairs)
    done = {name for name, record in state.real.read().items() if record.stamp == stamps.get(name)}
    ranks.wait()  # everybody has read before anybody writes
    count = len(source.classes)
    for pair, loss, _, labels in _new(source, pairs, done, "real", ranks):
        if not np.isfinite(loss).all():
            raise InputError(f"{pair.image}: the segmentor's loss is not finite here; are its weights sound?")
        state.real.append(
            RealRecord(
                name=pair.name,
                stamp=stamps[pair.name],
                sums=filtering.class_sums(loss, labels, count).tolist(),
                pixels=filtering.class_counts(labels, count).tolist(),
                histogram=filtering.loss_histogram(loss, labels, count).tolist() if pair.name in shown else None,
            ),
            str(ranks.rank),
        )
    ranks.wait()
    found = state.real.read()
    records = [found[pair.name] for pair in pairs]
    pixels = np.array([record.pixels for record in records])
    means = filtering.mean_loss([record.sums for record in records], pixels)
    return RealLoss(
        classes=list(source.classes),
        mean_loss=[None if np.isnan(m) else m for m in means.tolist()],
        pixels=pixels.sum(axis=0).tolist(),
        histogram=_histogram(records, count).tolist(),
        label_of_id=source.label_of_id(),
        mask_colors=[list(color) for color in source.labels.colors] or None,
    )


def filter_synthesized(
    source: Source, pairs: Sequence[Pair], real: RealLoss, rule: Rule, state: State, ranks: Ranks
) -> dict[str, FilteredRecord]:
    """Writes the filtered masks, in their files' own ids; returns what was kept, by image name."""
    limits = filtering.thresholds(_means(real), rule.margin, rule.unseen)
    stamps, shown = {pair.name: state.stamp(pair, limits.tolist()) for pair in pairs}, _in_figure(pairs)
    if rule.save_loss and ranks.rank == 0:
        for left_over in rule.save_loss.glob(".*.tmp.*"):
            left_over.unlink()
    done = {
        name
        for name, record in state.filtered.read().items()
        if record.stamp == stamps.get(name) and _are_there(record, rule)
    }
    ranks.wait()
    count, dropped = len(limits), source.dropped()
    for pair, loss, ids, labels in _new(source, pairs, done, "synthesized", ranks):
        kept = filtering.filter_mask(loss, labels, limits)
        checksum = None
        for path in reversed(rule.files(pair.name)):  # the mask last: it says that all is there
            if path.suffix == ".npy":
                stored = np.nan_to_num(loss, nan=_LARGEST).clip(max=_LARGEST).astype(np.float16)
                write_array(stored, path)
                checksum = zlib.crc32(stored.tobytes())
            else:
                _write_mask(np.where((kept == filtering.IGNORE) & (labels != filtering.IGNORE), dropped, ids), path)
        state.filtered.append(
            FilteredRecord(
                name=pair.name,
                stamp=stamps[pair.name],
                files=file_stamp(*rule.files(pair.name)),
                losses=checksum,
                total=filtering.class_counts(labels, count).tolist(),
                kept=filtering.class_counts(kept, count).tolist(),
                histogram=filtering.loss_histogram(loss, labels, count).tolist() if pair.name in shown else None,
            ),
            str(ranks.rank),
        )
    ranks.wait()
    found = state.filtered.read()
    return {pair.name: found[pair.name] for pair in pairs}


def _are_there(record: FilteredRecord, rule: Rule) -> bool:
    """Whether a record's files are those that were written for it; a run without losses may follow one with them."""
    there = file_stamp(*rule.files(record.name))
    return bool(there) and there == record.files[: len(there)]


def _new(
    source: Source, pairs: Sequence[Pair], done: set[str], label: str, ranks: Ranks
) -> Iterator[tuple[Pair, NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Pairs that are not done, with losses, ids and labels; in the batches that they have in an unbroken run."""
    size = source.batch_size
    batches = [range(start, min(start + size, len(pairs))) for start in range(0, len(pairs), size)]
    todo = [batch for batch in ranks.share(batches) if any(pairs[i].name not in done for i in batch)]
    total = sum(map(len, todo))
    for index, loss, ids in tqdm(
        source.losses(pairs, todo), label, total, unit="image", disable=ranks.rank > 0 or not todo
    ):
        if pairs[index].name not in done:
            yield pairs[index], loss, ids, source.labels.table[ids].astype(np.uint8)


def _write_mask(ids: NDArray[Any], path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(ids.astype(np.uint8)).save(temporary)


def _means(real: RealLoss) -> NDArray[Any]:
    return np.array([np.nan if value is None else value for value in real.mean_loss], dtype=np.float64)


def _in_figure(pairs: Sequence[Pair]) -> set[str]:
    """Names of evenly spread images, whose losses enter the figure."""
    return {pair.name for pair in pairs[:: -(-len(pairs) // HISTOGRAM_IMAGES)]}


def _histogram(records: Iterable[RealRecord | FilteredRecord], count: int) -> NDArray[Any]:
    """Sum of the records' histograms (C, bins)."""
    found = [np.array(record.histogram) for record in records if record.histogram]
    return np.sum(found, axis=0) if found else np.zeros((count, BINS), dtype=np.int64)


def say_unseen(real: RealLoss, unseen: str) -> None:
    """Names the classes that no real image shows."""
    if names := [name for name, pixels in zip(real.classes, real.pixels, strict=True) if not pixels]:
        fate = "become 255" if unseen == "ignore" else "are kept"
        print(
            f"warning: no real image shows {', '.join(names)}; their synthesized pixels {fate} (--unseen-class)",
            file=sys.stderr,
        )


def saved_source(folder: Path) -> tuple[Source, RealLoss]:
    """Losses that ``--save-loss`` wrote; ``Pair.image`` is the file of losses.

    Raises:
        InputError: the folder has no whole ``real_loss.json``.
    """
    real = read_real_loss(folder)
    labels = Labels(
        len(real.classes),
        of_id=None if real.label_of_id is None else tuple(real.label_of_id),
        colors=tuple((r, g, b, id_) for r, g, b, id_ in real.mask_colors or ()),
        name="of the losses",
    )

    def losses(
        pairs: Sequence[Pair], batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        for index in (index for batch in batches for index in batch):
            mask = labels.file_ids(pairs[index].mask)
            yield index, read_losses(pairs[index], mask, real), mask

    return Source(real.classes, labels, losses), real


def read_losses(pair: Pair, mask: NDArray[Any], real: RealLoss) -> NDArray[Any]:
    """Losses of a mask's pixels, float32 (H, W); ``Pair.image`` is their file.

    Raises:
        InputError: not such a file, or of another mask.
    """
    path = pair.image
    remedy = f"remove {path}, and make it again with --save-loss"
    values = read_array(path, "<f2", mask.shape, remedy)
    if real.checksums is not None and real.checksums.get(pair.name) != zlib.crc32(values.tobytes()):
        raise InputError(f"{path}: not what the filter wrote there, its checksum is another; {remedy}")
    if (values < 0).any():
        raise InputError(f"{path}: holds losses below 0; {remedy}")
    return values.astype(np.float32)


def saved_fault(pair: Pair, labels: Labels, real: RealLoss) -> str | None:
    """What is wrong with a file of losses or its mask; None where both are fine."""
    try:
        mask = labels.file_ids(pair.mask)
        if wrong := labels.wrong(mask):
            return f"{pair.mask}: {wrong}"
        read_losses(pair, mask, real)
    except InputError as error:
        return str(error)
    return None


def report(
    options: Mapping[str, Any],
    rule: Rule,
    real: RealLoss,
    records: Mapping[str, FilteredRecord],
    skipped: Sequence[str],
) -> str:
    """Writes filter_stats.json and filter_stats.svg, and real_loss.json beside saved losses; returns a summary."""
    limits = filtering.thresholds(_means(real), rule.margin, rule.unseen)
    statistics = filter_statistics(real, limits, records)
    if rule.save_loss:
        checksums = {name: record.losses for name, record in records.items()}
        content = {**real.model_dump(), "checksums": checksums}
        write_json(sealed(content), rule.save_loss / REAL_LOSS, indent=None)
    labels = {"labels": sealed({"of_id": real.label_of_id})} if real.label_of_id else {}
    write_json(
        {"options": dict(options), "skipped": list(skipped), **labels, **statistics}, rule.out / STATS, indent=None
    )
    with atomic_path(rule.out / "filter_stats.svg") as path:
        filter_figure(
            path,
            statistics["per_class"],
            np.asarray(real.histogram),
            _histogram(records.values(), len(limits)),
            rule.margin,
        )
    kept, dropped = (sum(values[key] for values in statistics["per_class"].values()) for key in ("kept", "dropped"))
    return (
        f"{len(records)} masks in {rule.out}, {100 * kept / max(kept + dropped, 1):.1f} % of their pixels kept; "
        f"{STATS} and filter_stats.svg say more"
    )
