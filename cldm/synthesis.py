"""Synthesising a data set: which images are missing, how each is made, and how it is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader, Dataset, Sampler

from cldm.callbacks import ctrl_c, to_uint8
from cldm.control_ldm import ControlLDM
from cldm.records import append_record, merge_records, publishing, read_records, working_in
from common.errors import InputError
from common.files import atomic_path
from common.rng import item_noise, seed_from
from ldm.data.pairs import PairedImages
from ldm.models.sampling import sample

SETTINGS = ("checkpoint_hash", "use_ema", "sampler", "steps", "scale", "eta")  # of a record: what makes its picture
HALF = {"bf16": torch.bfloat16, "16": torch.float16}  # precisions of the weights; others are Lightning's


@dataclass(frozen=True)
class Job:
    """One image to make: an item of the list and a seed."""

    item: int
    seed: int
    name: str


@dataclass(frozen=True)
class SynthesisOptions:
    """How images are made and written; the defaults are the published ones."""

    outdir: Path
    steps: int = 50
    sampler: str = "ddim"
    scale: float = 9.0
    eta: float = 0.0
    image_format: str = "jpg"
    quality: int = 95
    split_guidance: bool = False


def plan(
    dataset: PairedImages, options: SynthesisOptions, seeds: Sequence[int], only: Sequence[str] = ()
) -> tuple[list[Job], int]:
    """The images that are still to be made.

    Args:
        dataset: items with references.
        options: output folder and format.
        seeds: seeds of each item.
        only: names (``<mask name>_seed_<seed>``) of the images to make, even if they are there; empty for all.

    Returns:
        jobs in the list's order, and the number of images that are there already.

    Raises:
        InputError: ``only`` names an image that no item and seed give.
    """
    jobs = []
    if only:
        items = {item.name: i for i, item in enumerate(dataset.items)}
        for name in dict.fromkeys(text.removesuffix(".jpg").removesuffix(".png") for text in only):
            mask, _, number = name.rpartition("_seed_")
            if mask not in items or not number.isdecimal():
                raise InputError(f"--only {name}: no such image; names are <mask name>_seed_<seed>, masks in the list")
            jobs.append(Job(items[mask], int(number), name))
        return jobs, 0
    present = {entry.name for entry in os.scandir(options.outdir)}
    done = 0
    for i, item in enumerate(dataset.items):
        for seed in seeds:
            name = f"{item.name}_seed_{seed}"
            if f"{name}.{options.image_format}" in present:
                done += 1
            else:
                jobs.append(Job(i, seed, name))
    return jobs, done


def refuse_mixture(
    dataset: PairedImages, options: SynthesisOptions, seeds: Sequence[int], about: dict[str, Any]
) -> None:
    """Refuses to complete a folder whose images were made with other weights or settings.

    Args:
        dataset: items with references.
        options: of this run.
        seeds: of this run.
        about: what this run's records say beside, see ``Synthesiser``.

    Raises:
        InputError: an image of this run is there, made otherwise; the message names it and the first difference.
    """
    now = {**about, "sampler": options.sampler, "steps": options.steps, "scale": options.scale, "eta": options.eta}
    planned = {f"{item.name}_seed_{seed}" for item in dataset.items for seed in seeds}
    present = {entry.name for entry in os.scandir(options.outdir)}
    for name, then in read_records(options.outdir).items():
        if name not in planned or f"{name}.{options.image_format}" not in present:
            continue
        for setting in SETTINGS:
            if setting in then and then[setting] != now.get(setting):
                raise InputError(
                    f"--outdir {options.outdir}: {name} there was made with {setting} {then[setting]}, not "
                    f"{now.get(setting)}; name another folder, or remove these images"
                )


class JobDataset(Dataset[dict[str, Any]]):
    """Jobs as samples: the item's tensors, and the job itself."""

    def __init__(self, items: PairedImages, jobs: Sequence[Job]) -> None:
        self.items, self.jobs = items, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item of job ``index``, with the job's seed and name."""
        job = self.jobs[index]
        return {**self.items[job.item], "job_seed": job.seed, "job_name": job.name}


def same_size_batches(dataset: PairedImages, jobs: Sequence[Job], batch_size: int) -> list[list[int]]:
    """Indices of jobs in batches of images of one size, in the jobs' order."""
    batches: list[list[int]] = []
    open_batch: dict[Any, list[int]] = {}
    for i, job in enumerate(jobs):
        size = dataset.items[job.item].size if dataset.size is None else None
        batch = open_batch.setdefault(size, [])
        if not batch:
            batches.append(batch)
        batch.append(i)
        if len(batch) == batch_size:
            del open_batch[size]
    return batches


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


class Jobs(pl.LightningDataModule):
    """This process's share of the batches."""

    def __init__(self, items: PairedImages, jobs: Sequence[Job], batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.items, self.jobs, self.batch_size, self.num_workers = items, jobs, batch_size, num_workers

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every n-th batch, n being the number of processes."""
        assert self.trainer is not None
        jobs = self.trainer.strategy.broadcast(self.jobs)  # a command beside this one may have changed the folder since
        share = -(-len(jobs) // self.trainer.world_size)  # no device is left without work by large batches
        batches = same_size_batches(self.items, jobs, min(self.batch_size, share))
        return DataLoader(
            JobDataset(self.items, jobs),
            batch_sampler=Batches(batches[self.trainer.global_rank :: self.trainer.world_size]),
            collate_fn=collate,
            num_workers=self.num_workers,
        )


class Synthesiser(pl.LightningModule):
    """Makes the images of a batch of jobs, and writes them while the next batch is computed.

    An image's noise follows from its seed and its mask's name alone: it is the same in any batch and on any device.

    Args:
        model: with weights.
        options: sampler, scale, folder.
        about: what every record says (checkpoint, its hash, config).
    """

    def __init__(self, model: ControlLDM, options: SynthesisOptions, about: dict[str, Any]) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer batches than devices
        self.model, self.options, self.about = model, options, about
        self.pool = ThreadPoolExecutor(max_workers=4)
        self.writing: list[Future[None]] = []

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Samples, decodes, and hands over to the writers."""
        if self.trainer.received_sigterm:  # Lightning notes the signal, and goes on
            self.on_predict_end()
            print("SIGTERM: stopped; start again to make what is missing", file=sys.stderr)
            raise SystemExit(143)
        made = self.make(batch)
        if not torch.isfinite(made).all():
            names = ", ".join(batch["job_name"])
            raise InputError(f"not a number in one of the images {names}; take another --precision or checkpoint")
        images = to_uint8(made)
        fields = {"name": "job_name", "seed": "job_seed", "prompt": "txt", "mask": "mask_path",
                  "reference": "reference_path"}  # fmt: skip
        for i, image in enumerate(images):
            record = {field: batch[key][i] for field, key in fields.items()}
            self.writing.append(self.pool.submit(self._write_whole, image, record))
        while len(self.writing) > 4 * len(images):
            self.writing.pop(0).result()  # a full disk stops the run here

    def make(self, batch: dict[str, Any]) -> torch.Tensor:
        """Images (B, 3, H, W), about [-1, 1], of a batch of jobs."""
        model, options = self.model, self.options
        dtype = next(model.control_model.parameters()).dtype
        hint = batch["hint"].to(dtype)
        cond = {
            "c_concat": [hint],
            "c_crossattn": [model.get_learned_conditioning(batch["txt"])],
            "c_ssl": [model.image_latent(batch["ssl"].to(dtype))],
        }
        uncond = {**cond, "c_crossattn": [model.get_learned_conditioning([""] * len(batch["txt"]))]}
        seeds = [seed_from(seed, name) for seed, name in zip(batch["job_seed"], batch["name"], strict=True)]
        shape = (model.channels, *(side // model.factor for side in hint.shape[-2:]))
        x_T = item_noise(seeds, shape).to(hint)
        latents = sample(
            model, cond, uncond, x_T, options.steps, options.sampler, options.scale, options.eta, seeds,
            split=options.split_guidance,
        )  # fmt: skip
        return model.decode_first_stage(latents.to(x_T.dtype))

    def _write_whole(self, image: np.ndarray, record: dict[str, Any]) -> None:
        try:
            self._write(image, record)
        except OSError as error:
            raise InputError(f"--outdir {self.options.outdir}: cannot write {record['name']} ({error})") from error

    def _write(self, image: np.ndarray, record: dict[str, Any]) -> None:
        options = self.options
        made = {
            **record,
            "sampler": options.sampler,
            "steps": options.steps,
            "scale": options.scale,
            "eta": options.eta,
            "height": image.shape[0],
            "width": image.shape[1],
            **self.about,
        }
        kind: dict[str, Any] = {"format": "PNG"}
        if options.image_format == "jpg":
            kind = {"format": "JPEG", "quality": options.quality}
        name = options.outdir / f"{record['name']}.{options.image_format}"
        # leaving the block, the image first gets its name, after its record; then others may publish theirs
        with ExitStack() as turn, atomic_path(name) as path:
            Image.fromarray(image).save(path, **kind)
            turn.enter_context(publishing(options.outdir))
            append_record(options.outdir, made, self.trainer.global_rank)

    def on_predict_end(self) -> None:
        """Waits for the writers."""
        for future in self.writing:
            future.result()
        self.writing.clear()


def synthesise(
    model: ControlLDM,
    dataset: PairedImages,
    jobs: Sequence[Job],
    options: SynthesisOptions,
    about: dict[str, Any],
    batch_size: int,
    num_workers: int = 2,
    precision: str = "32",
    **trainer: Any,
) -> None:
    """Makes the images of all jobs on the devices that Lightning is given.

    Args:
        model: with weights, in eval mode.
        dataset: items with references.
        jobs: images to make, on the first process; the others take its.
        options: how.
        about: what every record says.
        batch_size: images a batch and device.
        num_workers: processes that read items, a device.
        precision: of the weights, one of ``HALF``; or Lightning's, such as ``bf16-mixed``.
        **trainer: accelerator, devices, num_nodes, strategy of Lightning's Trainer.
    """
    # Not by Lightning, which would also draw all noise in half precision: another picture.
    if precision in HALF:
        model.to(HALF[precision])
    engine = pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=True,
        callbacks=[TQDMProgressBar(refresh_rate=1)],
        precision="32-true" if precision in HALF else precision,  # type: ignore[arg-type]
        **trainer,
    )
    first = engine.is_global_zero
    with working_in(options.outdir) if first else nullcontext():
        if first:
            merge_records(options.outdir)  # of a run that was killed: older than what this one writes
        with ctrl_c():
            engine.predict(
                Synthesiser(model, options, about),
                datamodule=Jobs(dataset, jobs, batch_size, num_workers),
                return_predictions=False,
            )
        engine.strategy.barrier("images written")  # not in a hook: a process without a batch runs none
        if first:
            merge_records(options.outdir)
