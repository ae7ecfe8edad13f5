"""Which images of a synthesis are there, made as asked, and which are to be made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cldm.data.pairs import PairedImages
from cldm.reuse import key_steps
from cldm.synthesis.formats import format_of
from cldm.synthesis.judging import NO_JUDGES, Judges
from cldm.synthesis.options import SamplingOptions, SynthesisOptions
from cldm.synthesis.records import Sample, images_in, read_records
from common.errors import InputError
from common.files import digest, file_hash, name_fault
from common.schema import one_line
from ldm.models.schedule import spacing_of
from ldm.modules.tokenizer import Reading

MOST_IMAGES = 10_000_000  # of one command: a longer list is a slip of the hand, and would fill the memory
LONGEST_NAME = 255 - len("..12345678.tmp.jpg")  # bytes, so that the temporary file has a name, too
# Fields of the model's configuration that change its training, not its pictures, or that records say by themselves.
TRAINING_ONLY = (
    "learning_rate",
    "weight_decay",
    "optimizer",
    "warmup_steps",
    "decay_steps",
    "use_ema",
    "ema_decay",
    "trainable",
    "sd_locked",
    "aug_pipe_config",
    "loss_weighting",
    "min_snr_gamma",
    "timestep_sampling",
    "timestep_mean",
    "timestep_std",
    "hint_encoding",
    "classes",
    "bands",
    "distillation",
)
# Options that records say as they are.
AS_GIVEN = ("sampler", "steps", "scale", "mask_scale", "reference_scale", "eta", "start_strength", "reference_latent")
# What makes a picture, in the order in which differences are named.
MAKES = (
    "checkpoint_hash",
    "use_ema",
    "config_hash",
    "lora_hash",
    "lora_scale",
    "bands",
    "precision",
    "quantize",
    "sampler",
    "steps",
    "spacing",
    "scale",
    "mask_scale",
    "reference_scale",
    "guidance_rescale",
    "eta",
    "start_strength",
    "guidance_interval",
    "mask_strength",
    "reference_strength",
    "mask_span",
    "reference_span",
    "reuse_encoder",
    "key_steps",
    "rectify_hash",
    "rectify_config_hash",
    "rectify_steps",
    "rectify_scale",
    "candidates",
    "judge_hash",
    "judge_config_hash",
    "retry",
    "retry_below",
    "format",
    "quality",
    "height",
    "width",
    "hint_encoding",
    "mask_hash",
    "reference_hash",
    "start_hash",
    "reference_fit",
    "reference_latent",
    "prompt",
    "prompt_read",
    "seed",
)


@dataclass(frozen=True)
class Job:
    """One image to make: an item of the list and a seed; ``windows`` that its prompt takes."""

    item: int
    seed: int
    name: str
    windows: int = 1


@dataclass(frozen=True)
class FolderState:
    """The images of a run that its folder holds already.

    Attributes:
        as_asked: names of those that this run would make alike.
        different: what is another, by name, of those that it would make otherwise.
    """

    as_asked: frozenset[str] = frozenset()
    different: Mapping[str, str] = field(default_factory=dict)


def config_hash(model: Any) -> str:
    """Stands for what a configuration's ``model`` says of pictures."""
    params = {key: value for key, value in (model.get("params") or {}).items() if key not in TRAINING_ONLY}
    return digest({**model, "params": params})[:16]


class Recipe:
    """What pictures of a run are made of: the records' content, to be written and to be compared with.

    Args:
        dataset: items with references.
        options: how.
        of_model: checkpoint, its hash, whether averaged, configuration, its hash, precision: the same for all images.
        reading: what is read of a prompt.
        judges: the segmentors that guide and choose.
    """

    def __init__(
        self,
        dataset: PairedImages,
        options: SynthesisOptions,
        of_model: Mapping[str, Any],
        reading: Callable[[str], Reading],
        judges: Judges = NO_JUDGES,
    ) -> None:
        self.size, self.bands = dataset.size, dataset.bands
        self.asked, self.quality = options.image_format, options.quality
        self.reading = lru_cache(maxsize=4096)(reading)
        self._common = {
            **of_model,
            **{name: getattr(options, name) for name in AS_GIVEN},
            "spacing": spacing_of(options.spacing, options.steps, sampler=options.sampler),
            "guidance_rescale": options.guidance_rescale if options.guided else 0.0,
            **_of_savings(options),
            "bands": None if dataset.bands is None else dataset.bands.model_dump(exclude_defaults=True),
            "reference_fit": dataset.reference_fit,
            "hint_encoding": dataset.hint_fingerprint,
            **_of_judges(options, judges),
        }

    def sample(
        self,
        name: str,
        seed: int,
        prompt: str,
        mask: str,
        mask_hash: str,
        reference: str | None,
        reference_hash: str | None,
        start: str | None,
        start_hash: str | None,
        height: int,
        width: int,
        candidate: int = 0,
        scores: Sequence[float] = (),
    ) -> Sample:
        """The record of one image."""
        kind = format_of(mask, self.asked, self.bands)
        return Sample(
            name=name,
            seed=seed,
            prompt=prompt,
            prompt_read=self.reading(prompt).read,
            mask=_printable(mask),
            mask_hash=mask_hash,
            reference_hash=reference_hash,
            reference=None if reference is None else _printable(reference),
            start_hash=start_hash,
            start=None if start is None else _printable(start),
            height=height,
            width=width,
            candidate=candidate,
            scores=[round(score, 5) for score in scores],
            format=kind,
            quality=self.quality if kind == "jpg" else None,
            **self._common,
        )


def _of_savings(options: SamplingOptions) -> dict[str, Any]:
    """What records say of the parts that act, and when."""
    said: dict[str, Any] = {name: getattr(options, name) for name in ("preset", "mask_strength", "reference_strength")}
    said |= {name: list(getattr(options, name)) for name in ("guidance_interval", "mask_span", "reference_span")}
    said["reuse_encoder"] = options.reuse_encoder
    if options.reuse_encoder != "none":
        said["key_steps"] = key_steps(options.key_steps, options.steps_taken)
    return said


def _of_judges(options: SamplingOptions, judges: Judges) -> dict[str, Any]:
    """What records say of segmentors; nothing of one, or of settings, without effect."""
    said: dict[str, Any] = {"candidates": options.candidates, "retry": options.retry}
    if options.retry:
        said["retry_below"] = options.retry_below
    used = {"rectify": judges.guide, "judge": judges.judge if options.chooses else None}
    for name, segmentor in used.items():
        if segmentor is not None:
            identity = segmentor.identity
            said |= {name: identity["weights"], f"{name}_hash": identity["hash"]}
            said[f"{name}_config_hash"] = identity["config_hash"]
    if judges.guide is not None:
        said |= {"rectify_steps": options.rectify_steps, "rectify_scale": options.rectify_scale}
    return said


def _printable(path: str) -> str:
    """A path as JSON can hold it, even where its bytes are no UTF-8."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def images_of(dataset: PairedImages, seeds: Sequence[int]) -> Iterator[tuple[int, int, str]]:
    """Item, seed and name of each image of a list; an item's own seeds go before those of the command."""
    for i, item in enumerate(dataset.items):
        for seed in item.seeds or seeds:
            yield i, seed, f"{item.name}_seed_{seed}"


def check_names(dataset: PairedImages, seeds: Sequence[int]) -> None:
    """Refuses what no folder could hold.

    Raises:
        InputError: names of masks that give no names of images, or too many images.
    """
    if (count := sum(len(item.seeds or seeds) for item in dataset.items)) > MOST_IMAGES:
        raise InputError(f"‹num_samples› {len(seeds)}: {count} images; up to {MOST_IMAGES} at once")
    for item in dataset.items:
        if fault := name_fault(f"{item.name}_seed_{max(item.seeds or seeds)}", LONGEST_NAME):
            raise InputError(
                f"line {item.line} of the list, field source: {one_line(repr(item.name), 80)} is no name "
                f"for images ({fault}); rename the mask"
            )


def compare_with_folder(dataset: PairedImages, recipe: Recipe, outdir: Path, seeds: Sequence[int]) -> FolderState:
    """Compares the images that are there with what this run would make.

    Args:
        dataset: items with references.
        recipe: of this run.
        outdir: where images are.
        seeds: of each item.

    Raises:
        InputError: damaged records.
    """
    present, records = images_in(outdir) if outdir.is_dir() else {}, read_records(outdir)
    there = [(dataset.items[i], seed, name) for i, seed, name in images_of(dataset, seeds) if name in present]
    hashes = _hashes(path for item, *_ in there for path in (item.mask, item.reference, item.image) if path)
    fine: set[str] = set()
    others: dict[str, str] = {}
    for item, seed, name in there:
        height, width = recipe.size or item.size or (0, 0)
        reference = item.reference
        assert item.mask is not None  # a list of a synthesis is refused without
        now = recipe.sample(
            name,
            seed,
            item.prompt,
            str(item.mask),
            hashes[item.mask],
            None if reference is None else str(reference),
            None if reference is None else hashes[reference],
            None if item.image is None else str(item.image),
            None if item.image is None else hashes[item.image],
            height,
            width,
        )
        files = present[name]
        if len(files) > 1:
            others[name] = f"is there twice, {' and '.join(files)}"
        elif name not in records:
            others[name] = "has no record in samples.jsonl"
        elif fault := difference(records[name], now) or _other_file(files[0], f"{name}.{now.format}"):
            others[name] = fault
        else:
            fine.add(name)
    return FolderState(frozenset(fine), others)


def _hashes(paths: Iterable[Path]) -> dict[Path, str]:
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:
        return dict(zip(distinct, pool.map(file_hash, distinct), strict=True))


def difference(then: Sample, now: Sample, makes: Sequence[str] = MAKES) -> str:
    """The first thing that a record says otherwise than this run would; empty where none is."""
    for name in makes:
        before, wanted = getattr(then, name), getattr(now, name)
        if before == wanted:
            continue
        if before is None and wanted is not None:
            return f"has a record that does not say its {name}: another version of this program made it"
        if name in ("mask_hash", "reference_hash", "start_hash"):
            what = name.removesuffix("_hash")
            return f"was made with another {what} than {getattr(now, what)} is now"
        return f"was made with {name} {_shown(before)}, not {_shown(wanted)}"
    return ""


def _other_file(file: str, wanted: str) -> str:
    return "" if file == wanted else f"is the file {file}, not {wanted}"


def _shown(value: object) -> str:
    return repr(one_line(value, 60)) if isinstance(value, str) and " " in value else one_line(value, 60)


def refuse_mixture(outdir: Path, others: Mapping[str, str]) -> None:
    """Refuses to complete a folder whose images were made otherwise.

    Raises:
        InputError: ``others`` names images; the message says what is another of the first.
    """
    if others:
        name, difference = next(iter(others.items()))
        more = f" (so are {len(others) - 1} more)" if len(others) > 1 else ""
        raise InputError(
            f"‹outdir› {outdir}: {one_line(name, 80)} there {difference}{more}; make such images again by ‹remake›, or "
            "name another folder"
        )


def missing_images(
    dataset: PairedImages, recipe: Recipe, seeds: Sequence[int], as_asked: Collection[str], only: Sequence[str] = ()
) -> list[Job]:
    """The images that are still to be made, in the list's order.

    Args:
        dataset: items with references.
        recipe: of this run.
        seeds: of each item.
        as_asked: names of those that are there already.
        only: names (``<mask name>_seed_<seed>``) of the images to make, even if they are there; empty for all.

    Raises:
        InputError: ``only`` names an image that no item and seed give.
    """
    windows = [recipe.reading(item.prompt).windows for item in dataset.items]
    if not only:
        return [Job(i, seed, name, windows[i]) for i, seed, name in images_of(dataset, seeds) if name not in as_asked]
    jobs = []
    items = {item.name: i for i, item in enumerate(dataset.items) if item.seeds is None}  # of any seed
    named = {f"{item.name}_seed_{seed}": i for i, item in enumerate(dataset.items) for seed in item.seeds or ()}
    for name in dict.fromkeys(text.removesuffix(".jpg").removesuffix(".png").removesuffix(".tif") for text in only):
        mask, _, number = name.rpartition("_seed_")
        item = named.get(name, items.get(mask))
        if item is None or not _is_seed(number):
            raise InputError(
                f"‹only› {one_line(name, 80)}: no such image; names are <mask name>_seed_<seed>, masks in the list"
            )
        jobs.append(Job(item, int(number), name, windows[item]))
    return jobs


def _is_seed(text: str) -> bool:
    """Whether a text is a seed as file names write it: digits, no zero before them, within 63 bits."""
    return text.isascii() and text.isdecimal() and len(text) < 20 and str(int(text)) == text and int(text) < 2**63


def same_size_batches(dataset: PairedImages, jobs: Sequence[Job], batch_size: int) -> list[list[int]]:
    """Indices of jobs in batches of images of one size and prompts of one length, in the jobs' order."""
    batches: list[list[int]] = []
    open_batch: dict[Any, list[int]] = {}
    for i, job in enumerate(jobs):
        kind = (dataset.items[job.item].size if dataset.size is None else None, job.windows)
        batch = open_batch.setdefault(kind, [])
        if not batch:
            batches.append(batch)
        batch.append(i)
        if len(batch) == batch_size:
            del open_batch[kind]
    return batches
