"""Synthesizing a data set: how each image is made and written; which ones, ``cldm.synthesis.planning`` says."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader, Dataset, Sampler

from cldm.control_ldm import ControlLDM
from cldm.data.pairs import PairedImages
from cldm.synthesis.planning import Job, Recipe, SynthesisOptions, same_size_batches
from cldm.synthesis.records import Sample, append_record, images_in, publishing, working_in
from common.errors import InputError
from common.files import atomic_path, file_hash
from common.pictures import to_uint8
from common.rng import Stream, item_noise, seed_from
from ldm.models.sampling import sample
from ldm.models.schedule import make_scheduler, set_time_steps, spacing_of
from ldm.training.stop_on_signal import ctrl_c

HALF = {"bf16": torch.bfloat16, "16": torch.float16}  # precisions of the weights; others are Lightning's


def few_steps(model: ControlLDM, options: SynthesisOptions) -> list[str]:
    """A line about steps that begin too far from noise; none where all is well.

    Raises:
        InputError: a number of steps that cannot be.
    """
    spacing = spacing_of(options.spacing, options.steps)
    scheduler = make_scheduler(options.sampler, model.betas, model.parameterization, spacing)
    start, total = int(set_time_steps(scheduler, options.steps)[0]), len(model.betas)
    if start > 0.85 * total:
        return []
    return [
        f"--ddim-steps {options.steps}: {spacing} time steps begin at {start} of {total}, where the network "
        "expects less noise than there is, and images stay noisy; take --spacing trailing, or more steps"
    ]


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
        made_of: dict[str, Any] = {}
        for kind in ("mask", "reference"):
            path = item.get(f"{kind}_path")
            made_of |= {f"{kind}_path": path, f"{kind}_hash": None if path is None else file_hash(Path(path))}
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


class Synthesizer(pl.LightningModule):
    """Makes the images of a batch of jobs, and writes them while the next batch is computed.

    An image's noise follows from its seed and its mask's name alone: it is the same in any batch and on any device.

    Args:
        model: with weights.
        options: sampler, scale, folder.
        recipe: what the records say.
    """

    def __init__(self, model: ControlLDM, options: SynthesisOptions, recipe: Recipe) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer batches than devices
        self.model, self.options, self.recipe = model, options, recipe
        self.others = images_in(options.outdir)  # of these names, to be replaced, perhaps in another format
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
        for i, image in enumerate(images):
            record = self.recipe.sample(
                *(
                    batch[key][i]
                    for key in (
                        "job_name",
                        "job_seed",
                        "txt",
                        "mask_path",
                        "mask_hash",
                        "reference_path",
                        "reference_hash",
                    )
                ),
                *image.shape[:2],
            )
            self.writing.append(self.pool.submit(self._write_whole, image, record))
        while len(self.writing) > 4 * len(images):
            self.writing.pop(0).result()  # a full disk stops the run here

    def make(self, batch: dict[str, Any]) -> torch.Tensor:
        """Images (B, 3, H, W), about [-1, 1], of a batch of jobs."""
        model, options = self.model, self.options
        dtype = next(model.control_model.parameters()).dtype
        hint = batch["hint"].to(dtype)
        seeds = [seed_from(seed, name) for seed, name in zip(batch["job_seed"], batch["name"], strict=True)]
        draws = (
            [seed_from(seed, Stream.REFERENCE_LATENT) for seed in seeds]
            if options.reference_latent == "sample"
            else None
        )
        cond = {"c_concat": [hint], "c_crossattn": [model.get_learned_conditioning(batch["txt"])]}
        if "ssl" in batch:
            cond["c_ssl"] = [model.image_latent(batch["ssl"].to(dtype), draws)]
        uncond = {**cond, "c_crossattn": [model.get_learned_conditioning([""] * len(batch["txt"]))]}
        shape = (model.channels, *(side // model.factor for side in hint.shape[-2:]))
        x_T = item_noise(seeds, shape).to(hint)
        latents = sample(
            model,
            cond,
            uncond,
            x_T,
            options.steps,
            options.sampler,
            options.scale,
            options.eta,
            seeds,
            spacing=options.spacing,
            split=options.split_guidance,
        )
        return model.decode_first_stage(latents.to(x_T.dtype))

    def _write_whole(self, image: np.ndarray, record: Sample) -> None:
        try:
            self._write(image, record)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"--outdir {self.options.outdir}: cannot write {record.name} ({reason}); what is there is "
                "whole: make room, and start again"
            ) from error

    def _write(self, image: np.ndarray, record: Sample) -> None:
        options = self.options
        kind: dict[str, Any] = {"format": "PNG"}
        if options.image_format == "jpg":
            kind = {"format": "JPEG", "quality": options.quality}
        name = options.outdir / f"{record.name}.{options.image_format}"
        # leaving the inner block, the image gets its name, after its record; leaving the outer one, others may go on
        with ExitStack() as turn:
            with atomic_path(name) as path:
                Image.fromarray(image).save(path, **kind)
                turn.enter_context(publishing(options.outdir))
                append_record(options.outdir, record, self.trainer.global_rank)
            for other in self.others.get(record.name, ()):
                if other != name.name:
                    (options.outdir / other).unlink(missing_ok=True)

    def on_predict_end(self) -> None:
        """Waits for the writers."""
        for future in self.writing:
            future.result()
        self.writing.clear()


@contextmanager
def memory_for(batch_size: int) -> Iterator[None]:
    """Says in one line that a batch does not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lacking = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not lacking:
            raise
        raise InputError(
            f"--batch-size {batch_size}: a batch does not fit into memory; take a smaller one, "
            "--split-guidance or a smaller --size"
        ) from error


def synthesize(
    model: ControlLDM,
    dataset: PairedImages,
    jobs: Sequence[Job],
    options: SynthesisOptions,
    recipe: Recipe,
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
        recipe: what the records say.
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
    with working_in(options.outdir) if engine.is_global_zero else nullcontext():
        with ctrl_c(), memory_for(batch_size):
            engine.predict(
                Synthesizer(model, options, recipe),
                datamodule=Jobs(dataset, jobs, batch_size, num_workers),
                return_predictions=False,
            )
        engine.strategy.barrier("images written")  # not in a hook: a process without a batch runs none
