"""The filter's two passes: real images say what loss is normal, synthesized ones are filtered by it.

Both stop at any moment and go on: what is done is in records, and batches are the same ones whenever a run starts.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from common.arrays import write_array
from common.errors import InputError
from common.files import atomic_path
from common.pairing import Pair
from common.ranks import Ranks
from common.rasters import has_rasterio, is_geotiff, place_of, write_geotiff
from post_processing import filter_rule as rule
from post_processing.filter_losses import PixelLosses, table_of_ids
from post_processing.filter_options import FilterOptions
from post_processing.filter_state import FilteredRecord, RealLoss, RealRecord, State, file_stamp, sum_of_histograms

HISTOGRAM_IMAGES = 500  # images of each kind whose losses enter the figure
_LARGEST = float(np.finfo(np.float16).max)
_WRITERS = 4  # at most: each has an image's losses and masks in memory


@dataclass(frozen=True, eq=False)
class Passes:
    """Both passes over the images of this process and of the others that one launcher started.

    Attributes:
        options: the rule, and where results go.
        losses: of images.
        state: what is done.
        ranks: the processes.
        batch_size: images that share a batch.
    """

    options: FilterOptions
    losses: PixelLosses
    state: State
    ranks: Ranks
    batch_size: int = 1

    def measure_real(self, pairs: Sequence[Pair]) -> RealLoss:
        """Mean loss of each class over all real pixels, pixels of each class, and the losses' distribution."""
        stamps, shown = {pair.name: self.state.stamp(pair) for pair in pairs}, _in_figure(pairs)
        done = {name for name, record in self.state.real.read().items() if record.stamp == stamps.get(name)}
        self.ranks.wait()  # everybody has read before anybody writes
        labels = self.losses.labels()
        count = labels.num_classes
        for pair, loss, _, ids, _ in self._not_done(pairs, done, "real"):
            if not np.isfinite(loss).all():
                raise InputError(f"{pair.image}: the segmentor's loss is not finite here; are its weights sound?")
            self.state.real.append(
                RealRecord(
                    name=pair.name,
                    stamp=stamps[pair.name],
                    sums=rule.class_sums(loss, ids, count).tolist(),
                    pixels=rule.class_counts(ids, count).tolist(),
                    histogram=rule.loss_histogram(loss, ids, count).tolist() if pair.name in shown else None,
                ),
                str(self.ranks.rank),
            )
        self.ranks.wait()
        found = self.state.real.read()
        records = [found[pair.name] for pair in pairs]
        pixels = np.array([record.pixels for record in records])  # (images, C)
        means = rule.mean_loss([record.sums for record in records], pixels)
        return RealLoss(
            classes=list(self.losses.class_names),
            mean_loss=[None if np.isnan(m) else m for m in means.tolist()],
            pixels=pixels.sum(axis=0).tolist(),
            histogram=sum_of_histograms(records, count).tolist(),
            label_of_id=table_of_ids(labels),
            mask_colors=[list(color) for color in labels.colors] or None,
        )

    def filter_synthesized(self, pairs: Sequence[Pair], real: RealLoss) -> dict[str, FilteredRecord]:
        """Writes the masks as ``options.treatment`` has them, in their files' own ids; what was kept, by image name."""
        options = self.options
        limits = rule.thresholds(real.means(), options.tolerance_margin, options.unseen_class)  # (C,)
        stamps, shown = {pair.name: self.state.stamp(pair, limits.tolist()) for pair in pairs}, _in_figure(pairs)
        for folder in (options.save_loss, options.weight_map_path):
            for left_over in folder.glob(".*.tmp.*") if folder and self.ranks.rank == 0 else ():
                left_over.unlink()
        by_name = {pair.name: pair for pair in pairs}
        done = {
            name
            for name, record in self.state.filtered.read().items()
            if record.stamp == stamps.get(name) and self._are_there(record, by_name[name])
        }
        self.ranks.wait()

        writing = threading.Lock()

        def treat(pair: Pair, *seen: Any) -> None:
            record = self._treat(pair, *seen, limits=limits, stamp=stamps[pair.name], shown=pair.name in shown)
            with writing:  # at once: what is written is not done again
                self.state.filtered.append(record, str(self.ranks.rank))

        seen = self._not_done(pairs, done, "synthesized", options.treatment == "relabel")
        in_threads(treat, seen, options.num_workers)
        self.ranks.wait()
        found = self.state.filtered.read()
        return {pair.name: found[pair.name] for pair in pairs}

    def _treat(
        self,
        pair: Pair,
        loss: NDArray[Any],
        file_ids: NDArray[Any],
        ids: NDArray[Any],
        opinion: list[NDArray[Any]],
        *,
        limits: NDArray[Any],
        stamp: str,
        shown: bool,
    ) -> FilteredRecord:
        """Writes what becomes of a pair's mask, see ``_not_done`` for its arrays; what was kept. Several threads do."""
        options, count, labels = self.options, len(limits), self.losses.labels()
        relabels, weighs = options.treatment == "relabel", options.treatment == "weight"
        kept = ids if weighs else rule.filter_mask(loss, ids, limits)
        written = rule.relabel(kept, ids, opinion[0], opinion[1], options.sure) if relabels else kept
        in_file = np.where(written == rule.IGNORE, labels.id_to_ignore, labels.to_file(written))
        weights = rule.pixel_weights(loss, ids, limits) if weighs else None
        checksum = None
        for path in reversed(self._files(pair)):  # the mask last: it says that all is there
            if path.suffix == ".npy":
                stored = np.nan_to_num(loss, nan=_LARGEST).clip(max=_LARGEST).astype(np.float16)
                write_array(stored, path)
                checksum = zlib.crc32(stored.tobytes())
            elif weights is not None and path.parent == options.weight_map_path:
                _write_mask(np.rint(255 * weights), path)
            else:
                _write_mask(np.where(written != ids, in_file, file_ids), path, pair.mask, labels.id_to_ignore)
        treated: dict[str, Any] = {}
        if relabels:
            treated["relabeled"] = rule.class_counts(np.where(written != kept, written, rule.IGNORE), count).tolist()
        if weights is not None:
            treated["weights"] = rule.class_sums(weights, ids, count).tolist()
        return FilteredRecord(
            name=pair.name,
            stamp=stamp,
            files=file_stamp(*self._files(pair)),
            losses=checksum,
            total=rule.class_counts(ids, count).tolist(),
            kept=rule.class_counts(kept, count).tolist(),
            histogram=rule.loss_histogram(loss, ids, count).tolist() if shown else None,
            **treated,
        )

    def _files(self, pair: Pair) -> list[Path]:
        """The files that are written for a pair; of a mask that is a GeoTIFF, the filtered one is one, too."""
        return self.options.files_of(pair.name, ".tif" if has_rasterio() and is_geotiff(pair.mask) else ".png")

    def _are_there(self, record: FilteredRecord, pair: Pair) -> bool:
        """Whether a record's files are those written for it; a run without losses may follow one with them."""
        there = file_stamp(*self._files(pair))
        return bool(there) and there == record.files[: len(there)]

    def _not_done(
        self, pairs: Sequence[Pair], done: set[str], title: str, opinions: bool = False
    ) -> Iterator[tuple[Pair, NDArray[Any], NDArray[Any], NDArray[Any], list[NDArray[Any]]]]:
        """Pairs with loss, file ids and class ids (H, W); in the batches that they have in an unbroken run.

        With ``opinions`` also the most probable classes and their probability, each (H, W); else an empty list.
        """
        size, rank = self.batch_size, self.ranks.rank
        batches = [range(start, min(start + size, len(pairs))) for start in range(0, len(pairs), size)]
        todo = [batch for batch in self.ranks.share(batches) if any(pairs[i].name not in done for i in batch)]
        files = [(pair.image, pair.mask) for pair in pairs]
        source: Callable[..., Iterator[Any]] = self.losses.opinions if opinions else self.losses.pixel_losses
        found = source(files, todo, self.options.num_workers)
        table = self.losses.labels().table
        bar = tqdm(found, title, sum(map(len, todo)), unit="image", disable=rank > 0 or not todo)
        for index, loss, ids, *opinion in bar:
            if pairs[index].name not in done:
                yield pairs[index], loss, ids, table[ids].astype(np.uint8), opinion


def in_threads(work: Callable[..., None], items: Iterable[tuple[Any, ...]], threads: int) -> None:
    """``work(*item)`` of each item while the next ones are made: a GPU does not wait for a disk.

    An item more than there are threads waits, no more. What is begun is ended, whatever ends this.

    Raises:
        Exception: the first that ``work`` or ``items`` raised.
    """
    threads = min(max(threads, 1), _WRITERS)
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, *item))
            while len(waiting) > threads:
                waiting.popleft().result()
        for last in waiting:
            last.result()


def _write_mask(ids: NDArray[Any], path: Path, mask: Path | None = None, ignored: int = rule.IGNORE) -> None:
    with atomic_path(path) as temporary:
        if mask is not None and path.suffix == ".tif":
            values = ids.astype(np.uint8)[..., None]
            write_geotiff(temporary, values, place_of(mask), nodata=ignored, ids=True)
        else:
            Image.fromarray(ids.astype(np.uint8)).save(temporary)


def _in_figure(pairs: Sequence[Pair]) -> set[str]:
    """Names of evenly spread images, whose losses enter the figure."""
    return {pair.name for pair in pairs[:: -(-len(pairs) // HISTOGRAM_IMAGES)]}
