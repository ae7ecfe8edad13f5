"""From what is wished for on the page to images: the command's own synthesis, watched while it works."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cldm.distillation.options import FEW_STEPS
from cldm.synthesis.folder import read_items
from cldm.synthesis.formats import model_values, write_image
from cldm.synthesis.guiding import few_steps, guidance_of
from cldm.synthesis.options import SynthesisOptions
from cldm.synthesis.prompts import cut_lines
from cldm.synthesis.run import memory_for, synthesize
from common.errors import InputError
from common.images import IGNORE, read_image
from web.studio import Studio

MASK, REFERENCE, ITEMS = "mask.png", "reference.png", "items.json"
MOST = 4  # images side by side
_PREVIEWS = 6  # of an image while it is made; each is decoded, which takes as long as a part of a step
_WORK = threading.Lock()  # held by the thread that works: gradio goes on before the thread of a stopped request ends
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Wish:
    """What is to be painted.

    Attributes:
        mask: class ids (H, W) uint8, 255 where nothing is said.
        reference: image file whose style is taken; None for a model without references.
        prompt: text, may be empty.
        seed: of the first image; the others have the numbers after it.
        count: images, 1 to ``MOST``.
        preset: see ``cldm.synthesis.saving_options``.
        given: other options of ``SynthesisOptions``, which win over the preset's.
    """

    mask: NDArray[Any]
    reference: Path | None
    prompt: str = ""
    seed: int = 42
    count: int = 1
    preset: str = "published"
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Growing:
    """A moment of the work: step ``step`` of ``steps`` is done.

    Attributes:
        step: from 1.
        steps: of all.
        images: (N, H, W, 3) uint8, as predicted at the last step that is shown; None before the first of these.
    """

    step: int
    steps: int
    images: NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class Painted:
    """What was made.

    Attributes:
        folder: with ``mask.png``, ``reference.png``, ``items.json`` and ``images``.
        options: of the command that makes the same images of this folder.
        images: PNG files, one a seed.
        notes: what is to be said of it, a line each.
    """

    folder: Path
    options: SynthesisOptions
    images: list[Path]
    notes: list[str]

    @property
    def seeds(self) -> list[int]:
        """Of the images."""
        return list(self.options.seeds)


class Stopped(Exception):
    """Nobody waits for the images any more."""


def write_wish(studio: Studio, wish: Wish, folder: Path) -> SynthesisOptions:
    """Writes mask, reference and list into a folder; the options by which the command paints it.

    Raises:
        InputError: an empty mask, no reference, options that cannot be.
    """
    if not (wish.mask != IGNORE).any():
        raise InputError("the mask is empty: paint something, or choose a mask")
    if not 1 <= wish.count <= MOST:
        raise InputError(f"‹num_samples› {wish.count}: 1 to {MOST} at once here")
    line = {"source": MASK, "prompt": wish.prompt}
    if studio.model.fuses:
        if wish.reference is None:
            raise InputError("no reference: choose or upload one, the image is painted in its style")
        Image.fromarray(read_image(wish.reference)).save(folder / REFERENCE)
        line["ref_image"] = REFERENCE
    preset, given = wish.preset, wish.given
    if studio.distilled:  # paints as it was distilled, whatever the speed
        preset, given = "published", {"sampler": "lcm", "steps": FEW_STEPS, "scale": 1.0, **wish.given}
    Image.fromarray(studio.table.labels.to_file(wish.mask)).save(folder / MASK)
    (folder / ITEMS).write_text(json.dumps(line) + "\n", encoding="utf-8")
    return SynthesisOptions.of_preset(
        preset,
        config=studio.options.config,
        ckpt=studio.options.model,
        use_ema=studio.options.use_ema,
        trust=studio.options.trust,
        classes=studio.class_table,
        data_root=folder,
        items=folder / ITEMS,
        outdir=folder / "images",
        seed=wish.seed,
        num_samples=wish.count,
        batch_size=wish.count,
        num_workers=0,
        image_format="png",
        precision=studio.precision,
        gpus=studio.device.removeprefix("cuda:"),
        **given,
    )


def paint(studio: Studio, wish: Wish, folder: Path) -> Iterator[Growing | Painted]:
    """Paints a wish, in a thread of its own; ended early, the thread ends with its current step.

    Args:
        studio: what paints.
        wish: what.
        folder: empty one for all files.

    Yields:
        moments, then what was made. The images are those of the command that ``Painted.options`` are.

    Raises:
        InputError: a wish that cannot be fulfilled.
    """
    options = write_wish(studio, wish, folder)
    items = read_items(options, studio.model)
    guidance_of(studio.model, options)  # refused before the work
    notes = [*cut_lines(studio.model, items, "shorten it"), *few_steps(studio.model, options)]
    shown = {round(options.steps * (i + 1) / _PREVIEWS) - 1 for i in range(_PREVIEWS)}

    def work(tell: Callable[[Growing | Painted], None]) -> None:
        seen: NDArray[Any] | None = None

        def watch(step: int, see: Callable[[], torch.Tensor]) -> None:
            nonlocal seen
            if step == options.steps - 1:
                return
            if step in shown:
                seen = model_values(see(), None)
            tell(Growing(step + 1, options.steps, seen))  # at each step, which is where the work can be ended

        options.outdir.mkdir()
        images = []
        with memory_for(wish.count, "picture"):
            for name, image in synthesize(studio.model, items, options, watch=watch):
                path = options.outdir / f"{name}.png"
                write_image(path, "png", np.asarray(image), studio.model, str(folder / MASK), options.quality)
                images.append(path)
        tell(Painted(folder, options, images, notes))

    yield from from_thread(work)


def from_thread(work: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """Yields what ``work`` tells while it runs in a thread, after any other work; raises what it raises.

    Where the iterator is closed early, ``tell`` raises ``Stopped`` in the thread, which is waited for.
    """
    told: Queue[tuple[T | None, BaseException | None]] = Queue()
    stop = threading.Event()
    threads = torch.get_num_threads()  # a new thread would take as many as there are cores

    def tell(one: T) -> None:
        if stop.is_set():
            raise Stopped
        told.put((one, None))

    def run() -> None:
        torch.set_num_threads(threads)
        try:
            with _WORK:
                work(tell)
        except BaseException as error:
            told.put((None, error))
        else:
            told.put((None, None))

    thread = threading.Thread(target=run, name="painting", daemon=True)
    thread.start()
    try:
        while True:
            one, error = told.get()
            if error is not None:
                raise error
            if one is None:
                return
            yield one
    finally:
        stop.set()
        thread.join()
