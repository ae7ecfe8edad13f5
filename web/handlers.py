"""What the page does when something is clicked; a refusal becomes a message, never a trace."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.command import short_of_memory
from common.errors import InputError
from common.files import full_disk_line
from common.images import IGNORE, read_image
from common.schema import one_line
from web import look
from web.command import bundle, command_line
from web.masks import as_layer, fitted, painted_ids, read_mask_file
from web.painting import MASK, Growing, Painted, Wish, paint
from web.studio import Studio
from web.verdict import Verdict, mask_of_photo, overlaid, verdict_on

# options of ``SynthesisOptions``: name, label, least, most, step, default (where ``WebOptions`` says nothing)
SETTINGS: tuple[tuple[str, str, float, float, float, float], ...] = (
    ("mask_strength", "Mask strength", 0, 2, 0.05, 1.0),
    ("reference_strength", "Reference strength", 0, 2, 0.05, 1.0),
    ("scale", "Text guidance (1: none)", 1, 15, 0.1, 9.0),
    ("mask_scale", "Mask guidance (1: none)", 1, 6, 0.1, 1.0),
    ("reference_scale", "Reference guidance (1: none)", 1, 6, 0.1, 1.0),
    ("guidance_rescale", "Against colors too strong (0: none)", 0, 1, 0.05, 0.0),
    ("steps", "Steps (0: the speed's own)", 0, 100, 1, 0.0),
)
IMAGE, DROPPED = "Image", "What the filter would drop"
_REASONS = 3  # that are shown of an image, those of the most pixels
_KEPT = 40  # paintings whose files are there at a time
_UPLOADED = re.compile(r"\S*/gradio/[0-9a-f]{16,}/")
_LABELS = {"reference_scale": "reference guidance", "mask_scale": "mask guidance", "scale": "text guidance"}
_LABELS |= {"num_samples": "images", "preset": "speed"}


def message(error: BaseException) -> str:
    """An error in one line, fields of options as the page calls them."""
    if isinstance(error, InputError):
        text = error.told(lambda name: _LABELS.get(name, name.replace("_", " ")))
    else:
        text = full_disk_line(error) or (short_of_memory(error) if isinstance(error, Exception) else None) or ""
    text = _UPLOADED.sub("", text)  # a file's own name, not where this machine keeps it
    return one_line(text or f"this did not work ({type(error).__name__}: {error})", 600)


def shown(error: BaseException) -> gr.Error:
    """The same as the page's message; the trace of what nobody foresaw stays in the server's log."""
    return gr.Error(message(error), title="That did not work", print_exception=not isinstance(error, InputError))


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are messages on the page."""

    @wraps(handler)
    def guarded(*args: Any) -> Any:
        try:
            return handler(*args)
        except gr.Error:
            raise
        except Exception as error:
            raise shown(error) from None

    return guarded


@dataclass(frozen=True, eq=False)
class Result:
    """What the page shows: what was painted, and what the filter says of each image (none where nobody says)."""

    painted: Painted
    verdicts: list[Verdict] = field(default_factory=list)


class Handlers:
    """The page's actions.

    Args:
        studio: what paints and judges.
        work: folder for the files of paintings.
    """

    def __init__(self, studio: Studio, work: Path) -> None:
        self.studio, self.work = studio, work
        self._folders: deque[Path] = deque()

    # ---- masks

    def canvas(self, ids: NDArray[Any]) -> dict[str, Any]:
        """Class ids (H, W) as the editor's value."""
        layer = as_layer(ids, self.studio.palette)
        return {"background": None, "layers": [layer], "composite": layer}

    def ids_of(self, canvas: dict[str, Any] | None, rest: int = IGNORE) -> NDArray[Any]:
        """Class ids (side, side) uint8 of the editor's value; unpainted pixels are ``rest``."""
        side = self.studio.side
        ids: NDArray[Any] = np.full((side, side), IGNORE, np.uint8)
        for layer in (canvas or {}).get("layers") or []:
            if layer is None:
                continue
            of_layer = painted_ids(layer, self.studio.palette)
            of_layer = of_layer if of_layer.shape == ids.shape else fitted(of_layer, side, whole=True)
            ids = np.where(of_layer == IGNORE, ids, of_layer)
        return np.where(ids == IGNORE, rest, ids).astype(np.uint8)

    def load_mask(self, file: str, whole: bool) -> dict[str, Any]:
        """The editor's value for a mask file."""
        ids = read_mask_file(Path(file), self.studio.table)
        return self.canvas(self._fitted(ids, whole, "mask"))

    def choose_mask(self, event: gr.SelectData) -> dict[str, Any]:
        """The same for a mask of the gallery."""
        return self.load_mask(str(self.studio.masks()[int(event.index)]), False)

    def segment(self, file: str, whole: bool) -> dict[str, Any]:
        """The same for the classes that the segmentor finds in a photo."""
        photo = self._fitted(read_image(file), whole, "photo")
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            path = Path(folder, "photo.png")
            Image.fromarray(photo).save(path)
            return self.canvas(mask_of_photo(self.studio, path))

    def _fitted(self, pixels: NDArray[Any], whole: bool, what: str) -> NDArray[Any]:
        side, (height, width) = self.studio.side, pixels.shape[:2]
        if (height, width) != (side, side):
            part = "its middle square is scaled" if whole or min(height, width) < side else "its middle is taken"
            gr.Info(f"The {what} has {width} x {height} px; {part}: {side} x {side}.", duration=5)
        return fitted(pixels, side, whole)

    # ---- references

    def choose_reference(self, event: gr.SelectData) -> str:
        """File of a reference of the gallery."""
        return str(self.studio.references()[int(event.index)])

    def load_reference(self, file: str) -> str:
        """File of an uploaded reference, once it has been read."""
        read_image(file)
        return file

    def look_at(self, file: str | None) -> NDArray[Any] | None:
        """Pixels (H, W, 3) uint8 of the chosen reference, for the page: it lies where no browser may read."""
        return None if file is None else read_image(file)

    # ---- images

    def new_seed(self) -> int:
        """Any seed."""
        return random.randrange(1, 1_000_000)

    def prompt_of(self, ids: NDArray[Any], prompt: str) -> str:
        """The text, or one of the classes that the mask shows, as training sets have it."""
        if prompt.strip():
            return prompt.strip()
        present = [self.studio.table.names[k] for k in np.unique(ids[ids != IGNORE]).tolist()]
        return f"a satellite image of {' '.join(present)}"

    def paint(
        self,
        canvas: dict[str, Any] | None,
        rest: int,
        reference: str | None,
        prompt: str,
        preset: str,
        seed: float,
        count: float,
        *given: float,
    ) -> Iterator[tuple[Any, ...]]:
        """Paints; yields the page's pictures while they grow, then all that can be downloaded.

        ``given``: see ``SETTINGS``.
        """
        try:
            ids = self.ids_of(canvas, int(rest))
            values = {name: value for (name, *_), value in zip(SETTINGS, given, strict=False) if value is not None}
            if not float(seed or 0).is_integer():
                raise InputError(f"‹seed› {seed}: must be a whole number")
            if steps := values.pop("steps", 0):
                values["steps"] = int(steps)
            if not self.studio.model.fuses:
                values = {name: value for name, value in values.items() if not name.startswith("reference_")}
            wish = Wish(
                ids,
                None if reference is None else Path(reference),
                self.prompt_of(ids, prompt or ""),
                int(seed or 0),
                int(count),
                preset,
                values,
            )
            yield look.progress(0, 1, "starting"), *[gr.skip()] * 5
            for one in paint(self.studio, wish, self._folder()):
                if isinstance(one, Growing):
                    yield self._growing(one), *[gr.skip()] * 5
                    continue
                for note in one.notes:
                    gr.Warning(message(InputError(note)))
                files = (str(one.folder / MASK), str(bundle(one)), command_line(one.options))
                yield self.show(Result(one), IMAGE), Result(one), *map(_there, files[:2]), files[2], gr.skip()
                if self.studio.limits is not None:
                    verdicts = [verdict_on(self.studio, path, one.folder / MASK) for path in one.images]
                    result = Result(one, verdicts)
                    yield self.show(result, IMAGE), result, *[gr.skip()] * 3, gr.update(value=IMAGE, interactive=True)
        except gr.Error:
            raise
        except Exception as error:
            raise shown(error) from None

    def _growing(self, one: Growing) -> str:
        bar = look.progress(one.step, one.steps, f"step {one.step} of {one.steps}")
        images = () if one.images is None else one.images
        return bar + look.pictures([look.jpeg_address(image) for image in images], [""] * len(images))

    def show(self, result: Result | None, view: str) -> str:
        """The pictures of a result, as they are or with what the filter would drop."""
        if result is None:
            return look.empty("Paint a mask, choose a reference, and press Paint.")
        painted = result.painted
        if not all(path.is_file() for path in painted.images):
            return look.empty("These images were cleared away; paint them again.")
        captions = []
        for i, (seed, path) in enumerate(zip(painted.seeds, painted.images, strict=True)):
            kept = f", {1 - result.verdicts[i].share:.0%} kept" if result.verdicts else ""
            captions.append(f"<span>seed {seed}{escape(kept)}</span>{look.download(path)}")
        if view == DROPPED and result.verdicts:
            sources = [
                look.jpeg_address(overlaid(read_image(path), verdict.dropped))
                for path, verdict in zip(painted.images, result.verdicts, strict=True)
            ]
            return look.pictures(sources, captions) + "".join(
                look.told(self._sum(seed, verdict), verdict.reasons[:_REASONS])
                for seed, verdict in zip(painted.seeds, result.verdicts, strict=True)
            )
        return look.pictures([look.png_address(path) for path in painted.images], captions)

    def _sum(self, seed: int, verdict: Verdict) -> str:
        if not verdict.dropped.any():
            return f"Seed {seed}: the filter would keep all of it."
        return f"Seed {seed}: the filter would drop {verdict.share:.1%} of the labeled pixels (red)."

    def _folder(self) -> Path:
        """A new folder; the oldest one goes when there are many."""
        folder = Path(tempfile.mkdtemp(prefix="painting_", dir=self.work))
        self._folders.append(folder)
        if len(self._folders) > _KEPT:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        return folder


def _there(file: str) -> Any:
    return gr.update(value=file, interactive=True)
