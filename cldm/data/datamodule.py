"""Loaders for training and validation; a run that was stopped anywhere and resumed sees an unbroken run's batches."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from cldm.data.latent_cache import CachedLatents
from cldm.data.pairs import PairedImages
from common.errors import InputError
from common.rng import seed_from
from ldm.targets import get_class, instantiate_from_config
from ldm.training.loaders import TrainLoader, quiet_worker

# Parameters of the published data module that have no meaning here.
_PUBLISHED = ("test", "predict", "shuffle_test_loader", "shuffle_val_dataloader", "use_worker_init_fn")


class EpochSampler(Sampler[tuple[int, int]]):
    """One rank's share of an epoch as (epoch, index) pairs.

    The order is a permutation from (seed, epoch). Rank r takes places r, r + world_size, ... of it, so that batch b of
    all ranks together holds the same items however many ranks share it. Where the length does not divide, the first
    items fill up the last ranks.

    Args:
        length: number of items of the dataset.
        seed: seed of the order.
        rank: this process, 0..world_size - 1.
        world_size: number of processes.
    """

    def __init__(self, length: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng(seed_from(self.seed, self.epoch)).permutation(self.length)
        filled = np.resize(order, len(self) * self.world_size)  # repeats from the start
        return iter([(self.epoch, int(index)) for index in filled[self.rank :: self.world_size]])


class RankItems(Dataset[dict[str, Any]]):
    """One rank's share of a set, in the set's order, always of epoch 0.

    Ranks have equally many items, as engines that share the weights themselves need. Items that repeat others to fill
    up the last ranks have ``weight`` 0, the others 1: a weighted mean is the same for any number of ranks.

    Args:
        items: the set; its items are dictionaries.
        rank: this process, 0..world_size - 1.
        world_size: number of processes.
    """

    def __init__(self, items: Any, rank: int = 0, world_size: int = 1) -> None:
        self.items = items
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.items) // self.world_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item at place ``index`` x world_size + rank of the set."""
        place = index * self.world_size + self.rank
        return {**self.items[place % len(self.items)], "weight": np.float32(place < len(self.items))}


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Batches of items as (epoch, index); each iteration yields as many as an epoch has, and may begin in its middle.

    A run that goes on within an epoch starts at the batch that ``position`` names, and its iteration ends as many
    batches later, within the next epoch. The place is asked of ``position`` and not of Lightning's epoch counter: after
    a run that ``max_steps`` ended within an epoch that counter is one too high, and it is set only after the workers
    have begun to read.

    Args:
        order: this rank's order of items. (Lightning calls ``set_epoch`` of an attribute ``sampler``: not this one's
            name.)
        batch_size: items a batch and rank. The last, smaller batch of an epoch is dropped, unless it is the only one.
        position: returns (epoch, batch within it) to begin at.
    """

    def __init__(self, order: EpochSampler, batch_size: int, position: Callable[[], tuple[int, int]]) -> None:
        self.order = order
        self.batch_size = batch_size
        self.position = position

    @property
    def items_a_batch(self) -> int:
        """Items in a full batch of all ranks together."""
        return self.batch_size * self.order.world_size

    def __len__(self) -> int:
        return max(1, len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.position()
        start = epoch * len(self) + first
        items: list[tuple[int, int]] = []
        for number in range(start, start + len(self)):
            epoch, batch = divmod(number, len(self))
            if number == start or batch == 0:
                self.order.set_epoch(epoch)
                items = list(self.order)
            yield items[batch * self.batch_size : (batch + 1) * self.batch_size]


@dataclass(frozen=True)
class _Place:
    """A place in the training data: ``items`` items of all ranks into ``epoch``, reached after ``batches`` batches."""

    epoch: int = 0
    items: int = 0
    batches: int = 0


class DataModuleFromConfig(LightningDataModule):
    """Training and validation sets from configuration.

    Use with ``Trainer(use_distributed_sampler=False)``; the loaders share items among ranks themselves. The place in
    the training data is saved in Lightning checkpoints, counted in finished batches, and restored exactly: within an
    epoch, at its end, with any number of workers.

    Args:
        batch_size: items a batch and device.
        train: config of the training set (``target`` and ``params``).
        validation: config of the validation set.
        num_workers: processes that read items; None is one per CPU, at most 8 a device.
        wrap: published parameter without effect.
        seed: seed of the order, and of datasets whose ``params`` name none.
        cache_latents: folder of latents and texts that are computed once, see ``CachedLatents`` and ``CachedTexts``;
            None computes them anew.
        cache_variants: variants of a training item there; an item of validation has one, as it is the same each time.
        cache_half: keep them in 16 bit.
        **published: other parameters of the published data module; a warning lists them.

    Raises:
        InputError: neither set is given, or a parameter is unknown or out of range.
    """

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        num_workers: int | None = None,
        wrap: bool = False,
        seed: int = 0,
        cache_latents: str | os.PathLike[str] | None = None,
        cache_variants: int = 4,
        cache_half: bool = False,
        **published: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(published) - set(_PUBLISHED)):
            raise InputError(f"data: unknown parameters {', '.join(unknown)}")
        if ignored := [name for name, value in {"wrap": wrap, **published}.items() if value]:
            warnings.warn(f"data: published parameters without effect here: {', '.join(ignored)}")
        if train is None and validation is None:
            raise InputError("data: neither train nor validation is given; name at least one")
        if batch_size < 1:
            raise InputError(f"data: batch_size is {batch_size}; must be at least 1")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.configs = {name: c for name, c in (("train", train), ("validation", validation)) if c is not None}
        self.datasets: dict[str, Dataset[Any]] = {}
        self.cache_latents = None if cache_latents is None else Path(cache_latents)
        self.cache_variants, self.cache_half = cache_variants, cache_half
        self.cached: dict[str, CachedLatents] = {}  # what loaders read in place of the data sets
        self._batches: TrainBatches | None = None
        self._start = _Place()

    def setup(self, stage: str | None = None) -> None:
        """Builds the sets, once; all their checks happen here."""
        for name, config in self.configs.items():
            if name not in self.datasets:
                self.datasets[name] = self._build(config)

    def open_cache(self, of_first_stage: str) -> None:
        """Reads latents of ``cache_latents`` from now on, in place of images; ``CachedLatents.fill`` makes them.

        Args:
            of_first_stage: stands for its weights.

        Raises:
            InputError: the folder holds latents of something else.
        """
        assert self.cache_latents is not None
        for name, dataset in self.datasets.items():
            if not isinstance(dataset, PairedImages):
                raise InputError(f"data: {name}: latents of PairedImages alone can be kept; leave ‹cache_latents› out")
            variants = self.cache_variants if name == "train" else 1
            folder = self.cache_latents / name
            self.cached[name] = CachedLatents(dataset, folder, of_first_stage, variants, self.cache_half)

    def check_batches(self) -> None:
        """Makes a batch of each set, in this process.

        Raises:
            InputError: items that do not go together, or that are damaged beyond what ``setup`` sees.
        """
        for name, dataset in self.datasets.items():
            items: Any = dataset if name == "train" else RankItems(dataset)
            keys: list[Any] = [(0, i) if name == "train" else i for i in range(min(self.batch_size, len(items)))]
            try:
                default_collate([items[key] for key in keys])
            except (RuntimeError, TypeError, KeyError) as error:
                raise InputError(
                    f"data: {name}: its first {len(keys)} items make no batch ({' '.join(str(error).split())[:200]})"
                ) from error

    def train_dataloader(self) -> TrainLoader:
        """This rank's training batches, shuffled anew each epoch."""
        dataset = self.cached.get("train", self.datasets["train"])
        if self._batches_done() < self._start.batches:  # a new training, after a resumed one, with the same data module
            self._start = _Place()
        order = EpochSampler(len(dataset), self.seed, *self._rank())  # type: ignore[arg-type]
        self._batches = TrainBatches(order, self.batch_size, self._position)
        options = self._options()
        return TrainLoader(
            dataset, batch_sampler=self._batches, persistent_workers=options["num_workers"] > 0, **options
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """This rank's validation batches (see ``RankItems``); none without a validation set."""
        if "validation" not in self.datasets:
            return []
        dataset = self.cached.get("validation", self.datasets["validation"])
        return DataLoader(RankItems(dataset, *self._rank()), self.batch_size, **self._options())

    def state_dict(self) -> dict[str, Any]:
        """The place in the training data, for the checkpoint."""
        if self._batches is None:
            return {}
        epoch, batch = self._position()
        return asdict(_Place(epoch, batch * self._batches.items_a_batch, self._batches_done()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the place; it holds for another batch size or number of devices, too."""
        self._start = _Place(**state_dict)

    def _build(self, config: Mapping[str, Any]) -> Dataset[Any]:
        overrides = {}
        seeded = "seed" in (config.get("params") or {})
        if "target" in config and not seeded and "seed" in inspect.signature(get_class(config["target"])).parameters:
            overrides["seed"] = self.seed
        dataset = instantiate_from_config(config, **overrides)
        if isinstance(dataset, PairedImages) and dataset.size is dataset.crop is None and self.batch_size > 1:
            sizes = sorted({item.size for item in dataset.items if item.size})
            if len(sizes) > 1:
                found = ", ".join(f"{height} x {width}" for height, width in sizes[:3])
                raise InputError(
                    f"data: images of different sizes ({found}) cannot share a batch; set size, or batch_size 1"
                )
        return dataset

    def _rank(self) -> tuple[int, int]:
        """This process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _options(self) -> dict[str, Any]:
        workers = self.num_workers
        if workers is None:
            workers = min(8, (os.cpu_count() or 1) // (self.trainer.num_devices if self.trainer else 1))
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": workers, "worker_init_fn": quiet_worker, "pin_memory": on_gpu}

    def _batches_done(self) -> int:
        """Batches that the trainer has finished since the start of training, before it was resumed included."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]

    def batches_before(self) -> int:
        """Number of batches, of today's size, before the one that comes next; over all epochs."""
        assert self._batches is not None
        first = self._start.epoch * len(self._batches) + self._start.items // self._batches.items_a_batch
        return first + self._batches_done() - self._start.batches

    def _position(self) -> tuple[int, int]:
        """(epoch, batch) that comes next."""
        assert self._batches is not None
        return divmod(self.batches_before(), len(self._batches))
