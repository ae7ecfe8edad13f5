"""Synthesizing a data set: how images are made (``synthesize``) and how the command writes them (``write_images``).

Which images are still to be made, ``cldm.synthesis.planning`` says.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset, Sampler

from cldm.control_ldm import ControlLDM
from cldm.data.pairs import PairedImages
from cldm.synthesis.candidates import Painted, best_candidates, noise_seed
from cldm.synthesis.formats import as_numbers, model_values, write_image
from cldm.synthesis.guiding import guidance_of, sparing
from cldm.synthesis.judging import NO_JUDGES, Judge, Judges
from cldm.synthesis.options import SamplingOptions, SynthesisOptions
from cldm.synthesis.planning import Job, Recipe, images_of, same_size_batches
from cldm.synthesis.prompts import reading
from cldm.synthesis.records import Sample, append_record, images_in, publishing, working_in
from cldm.synthesis.rectify import Rectifier
from common.devices import count_devices, parse_devices
from common.errors import InputError
from common.files import atomic_path, file_hash
from common.rng import item_noise
from ldm.models.sampling import sample
from ldm.quantization import quantize
from ldm.training.loaders import AT_END_OF_TIME, quiet_worker
from ldm.training.ranks import launcher, started_by_first
from ldm.training.stop_on_signal import ctrl_c

HALF = {"bf16": torch.bfloat16, "16": torch.float16}  # precisions of the weights; others are Lightning's
# told at each step: its number, and what decodes the images (B, 3, H, W), about [-1, 1], as they are predicted then
Watch = Callable[[int, Callable[[], torch.Tensor]], None]
FILES = ("mask", "reference", "start")  # of an item; then what ``Recipe.sample`` is given of it
RECORDED = ("job_seed", "txt", *(f"{kind}_{what}" for kind in FILES for what in ("path", "hash")))


class JobDataset(Dataset[dict[str, Any]]):
    """Jobs as samples: the item's tensors, and the job itself."""

    def __init__(self, items: PairedImages, jobs: Sequence[Job]) -> None:
        self.items, self.jobs = items, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item of job ``index``, with the job's seed and name, and what its files hold."""
        job = self.jobs[index]
        item = self.items[job.item]
        paths = {kind: item.get(f"{kind}_path") for kind in FILES}
        made_of = {f"{kind}_path": path for kind, path in paths.items()}
        made_of |= {f"{kind}_hash": None if path is None else file_hash(Path(path)) for kind, path in paths.items()}
        return {**item, **made_of, "job_seed": job.seed, "job_name": job.name}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks tensors; keeps everything else in lists."""
    return {
        key: torch.stack([s[key] for s in samples]) if isinstance(value, torch.Tensor) else [s[key] for s in samples]
        for key, value in samples[0].items()
    }


class Batches(Sampler[list[int]]):
    """Fixed batches of indices."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def batch_loader(
    items: PairedImages, jobs: Sequence[Job], batches: list[list[int]], num_workers: int
) -> DataLoader[dict[str, Any]]:
    """Reads jobs in the given batches of their indices; for a GPU, into memory that is copied while it computes."""
    return DataLoader(
        JobDataset(items, jobs),
        batch_sampler=Batches(batches),
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )


class Jobs(pl.LightningDataModule):
    """This process's share of the batches."""

    def __init__(self, items: PairedImages, jobs: Sequence[Job], batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.items, self.jobs, self.batch_size, self.num_workers = items, jobs, batch_size, num_workers

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every n-th batch, n being the number of processes."""
        assert self.trainer is not None
        # All take the first process's list: another command may have added images to the folder since it was made.
        jobs = self.trainer.strategy.broadcast(self.jobs)
        share = -(-len(jobs) // self.trainer.world_size)  # no device is left without work by large batches
        batches = same_size_batches(self.items, jobs, min(self.batch_size, share))
        own = batches[self.trainer.global_rank :: self.trainer.world_size]
        return batch_loader(self.items, jobs, own, self.num_workers)


def paint(
    model: ControlLDM,
    batch: Mapping[str, Any],
    options: SamplingOptions,
    guide: Judge | None = None,
    candidate: int = 0,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Images (B, bands, H, W), about [-1, 1], of a batch of jobs, guided by a segmentor if there is one.

    An image's noise follows from its seed, its mask's name and the candidate's number alone: it is the same in any
    batch and on any device, watched or not.
    """
    seeds = [noise_seed(*job, candidate) for job in zip(batch["job_seed"], batch["name"], strict=True)]
    cond = model.conditions(batch, seeds if options.reference_latent == "sample" else None)
    shape = (model.channels, *(side // model.factor for side in cond.mask.shape[-2:]))
    x_T = item_noise(seeds, shape).to(cond.mask)
    rectifier = None
    if guide is not None:
        height, width = cond.mask.shape[-2:]

        def decode(latent: torch.Tensor) -> torch.Tensor:
            return model.decode_with_gradient(latent.to(x_T.dtype))

        labels = np.stack([guide.labels(mask, (height, width)) for mask in batch["mask_path"]])
        rectifier = Rectifier(decode, guide, labels, options.rectify_steps, options.rectify_scale)
    latents = sample(
        sparing(model, options),
        cond,
        model.without_text(cond),
        x_T,
        options.steps,
        options.sampler,
        options.scale,
        options.eta,
        seeds,
        spacing=options.spacing,
        guidance=guidance_of(model, options),
        correct_x0=rectifier,
        watch=None if watch is None else lambda i, x0: watch(i, lambda: model.decode_first_stage(x0.to(x_T.dtype))),
        split=options.split_guidance,
        start=model.batch_latent(batch, "start", dtype=x_T.dtype) if options.paints_over else None,
        strength=options.start_strength,
    )
    return model.decode_first_stage(latents.to(x_T.dtype))


def painted(
    model: ControlLDM,
    batch: Mapping[str, Any],
    options: SamplingOptions,
    judges: Judges = NO_JUDGES,
    watch: Watch | None = None,
) -> list[Painted]:
    """The image of each job of a batch: of its candidates, the best.

    Raises:
        InputError: the model gave numbers that are not finite, or nobody is there to choose.
    """

    def make(some: Mapping[str, Any], candidate: int) -> NDArray[Any]:
        made = paint(model, some, options, judges.guide, candidate, watch)
        if not torch.isfinite(made).all():
            names = ", ".join(some["job_name"])
            raise InputError(f"not a number in one of the images {names}; take another ‹precision› or checkpoint")
        return model_values(made, model.bands)

    return best_candidates(make, batch, options, judges.judge, model.device)


def synthesize(
    model: ControlLDM,
    items: PairedImages,
    options: SamplingOptions,
    judges: Judges = NO_JUDGES,
    watch: Watch | None = None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Makes images in this process, on the model's device, and writes nothing: for notebooks and other programs.

    Args:
        model: with weights, in eval mode.
        items: masks, references and prompts; with ``start_image`` to be painted over.
        options: how, and which seeds of each item.
        judges: segmentors that guide and choose (``segmentation.judge.open_judge``).
        watch: sees each batch's images grow; what it raises ends the synthesis.

    Raises:
        InputError: a segmentor reads other bands than the model's, or items do not read what is to be painted over.

    Yields:
        name (``<mask name>_seed_<seed>``) and image, batch by batch: (H, W, 3) uint8, or (H, W, bands) in numbers of
        the training images where bands are stated. They are those of the command.
    """
    if model.bands is not None:
        judges = judges.of_bands(model.bands)
    model.accelerate()
    if options.paints_over and not items.start_image:
        raise InputError(f"‹start_strength› {options.start_strength:g}: items need start_image=True")
    items.check_hints(model.control_model.hint_channels)
    windows = [reading(model, item.prompt).windows for item in items.items]
    jobs = [Job(i, seed, name, windows[i]) for i, seed, name in images_of(items, options.seeds)]
    for batch in batch_loader(items, jobs, same_size_batches(items, jobs, options.batch_size), options.num_workers):
        with torch.inference_mode():
            on_device = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            images = painted(model, on_device, options, judges, watch)
        for name, one in zip(batch["job_name"], images, strict=True):
            yield name, as_numbers(one.image, model.bands)


class _Stopped(Exception):
    """A signal came; this process's images are written."""


class Synthesizer(pl.LightningModule):
    """Writes the images of a process's batches, those of one batch while the next is computed.

    Args:
        model: with weights.
        options: sampler, scale, folder.
        recipe: what the records say.
        judges: segmentors that guide and choose.
    """

    def __init__(
        self, model: ControlLDM, options: SynthesisOptions, recipe: Recipe, judges: Judges = NO_JUDGES
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer batches than devices
        self.model, self.options, self.recipe, self.judges = model, options, recipe, judges
        self.others = images_in(options.outdir)  # of these names, to be replaced, perhaps in another format
        self.pool = ThreadPoolExecutor(max_workers=4)
        self.writing: list[Future[None]] = []
        self.stopped = False

    def on_predict_start(self) -> None:
        """Takes signals of a cluster over from Lightning.

        Its handler sends a message to the other processes each time it is called. A process that gets the signal twice,
        from the cluster and from the first process, would wait for ever for the others to send another.
        """
        if threading.current_thread() is threading.main_thread():  # signals arrive there alone
            for number in AT_END_OF_TIME:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if not self.stopped:
            self.stopped = True
            if (starter := self.trainer.strategy.launcher) is not None:
                starter.kill(signal.SIGTERM)  # passes it on to the processes that it started

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Makes a batch's images, and hands them over to the threads that write."""
        if self.stopped:
            self.on_predict_end()
            raise _Stopped
        for i, one in enumerate(painted(self.model, batch, self.options, self.judges)):
            of_item = (batch[key][i] for key in RECORDED)
            of_image = (*one.image.shape[:2], one.candidate, one.scores)
            record = self.recipe.sample(batch["job_name"][i], *of_item, *of_image)
            self.writing.append(self.pool.submit(self._write_whole, one.image, batch["mask_path"][i], record))
        # Lets a few batches of images wait for the disk, no more. A writer's error (the disk is full) is raised by
        # result(), and stops the run.
        while len(self.writing) > 4 * len(batch["job_name"]):
            self.writing.pop(0).result()

    def _write_whole(self, image: NDArray[Any], mask: str, record: Sample) -> None:
        try:
            self._write(image, mask, record)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"‹outdir› {self.options.outdir}: cannot write {record.name} ({reason}); what is there is "
                "whole: make room, and start again"
            ) from error

    def _write(self, image: NDArray[Any], mask: str, record: Sample) -> None:
        options = self.options
        assert record.format is not None
        name = options.outdir / f"{record.name}.{record.format}"
        # The image is encoded into a temporary file while other processes do the same. Then, one process at a time
        # (``publishing``), the image that it replaces is removed, its record is written and, at the end of
        # ``atomic_path``, the file gets its name: a kill in between leaves a record without an image, which the next
        # run makes again, never an image without a record, or with another one's.
        with ExitStack() as turn, atomic_path(name) as path:
            write_image(path, record.format, image, self.model, mask, options.quality)
            turn.enter_context(publishing(options.outdir))
            for other in self.others.get(record.name, ()):
                (options.outdir / other).unlink(missing_ok=True)
            append_record(options.outdir, record, self.trainer.global_rank)

    def on_predict_end(self) -> None:
        """Waits for the writers."""
        for future in self.writing:
            future.result()
        self.writing.clear()


@contextmanager
def memory_for(batch_size: int, side: str = "‹size›") -> Iterator[None]:
    """Says in one line that a batch does not fit; ``side`` is the option for the images' size."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lacking = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not lacking:
            raise
        raise InputError(
            f"‹batch_size› {batch_size}: a batch does not fit into memory; take a smaller one, "
            f"‹split_guidance› or a smaller {side}"
        ) from error


def write_images(
    model: ControlLDM,
    dataset: PairedImages,
    jobs: Sequence[Job],
    options: SynthesisOptions,
    recipe: Recipe,
    judges: Judges = NO_JUDGES,
) -> None:
    """Makes the images of all jobs on the devices that Lightning is given.

    Args:
        model: with weights, in eval mode.
        dataset: items with references.
        jobs: images to make, on the first process; the others take its.
        options: how, where to, and on what devices.
        recipe: what the records say.
        judges: segmentors that guide and choose.
    """
    precision = options.precision
    # The weights are cast here, not by Lightning: its half precision also draws the noise in half precision, which
    # gives another picture.
    if precision in HALF:
        model.to(HALF[precision])
    devices = parse_devices(options.gpus)
    quantize(model.networks, options.quantize, devices["accelerator"] == "gpu")
    model.accelerate(compile_networks=options.compile)
    several = options.num_nodes > 1 or count_devices(devices["devices"]) > 1
    engine = pl.Trainer(
        # they meet at the end alone, where the first to be done may wait for hours
        strategy=DDPStrategy(timeout=timedelta(days=7)) if several else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=True,
        callbacks=[TQDMProgressBar(refresh_rate=1)],
        precision="32-true" if precision in HALF else precision,  # type: ignore[arg-type]
        num_nodes=options.num_nodes,
        plugins=launcher(count_devices(devices["devices"]), options.num_nodes),
        **devices,
    )
    cut_short = False
    with working_in(options.outdir) if engine.is_global_zero else nullcontext():
        painter = Synthesizer(model, options, recipe, judges)
        with ctrl_c(), memory_for(options.batch_size), painter.pool:  # an error, too, waits for files half written
            try:
                engine.predict(
                    painter,
                    datamodule=Jobs(dataset, jobs, options.batch_size, options.num_workers),
                    return_predictions=False,
                )
            except _Stopped:
                cut_short = True
                for number in AT_END_OF_TIME:  # another one, from the cluster or from the first process
                    signal.signal(number, signal.SIG_IGN)
        # The first process joins all records when it leaves ``working_in``: it waits here for the others' images.
        # Lightning's hooks would be no place to wait, since a process without a batch runs none of them. After a
        # signal, too: Lightning, and srun, kill the others within seconds of the first that ends with a code.
        cut_short = engine.strategy.reduce_boolean_decision(cut_short, all=False)
    if cut_short:
        if engine.is_global_zero:
            print("SIGTERM: stopped; start again to make what is missing", file=sys.stderr)
        raise SystemExit(0 if started_by_first() else 128 + signal.SIGTERM)  # the first one's is the command's
