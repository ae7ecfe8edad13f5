"""What the page is started with. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cldm.options import ModelOptions
from cldm.synthesis.saving_options import PRESETS
from common.converters import integer, number, pixels
from common.errors import InputError
from common.options import option

BOX = Path(__file__).resolve().parents[1] / "demo" / "mbrsc"  # the model in the box


@dataclass(frozen=True, kw_only=True)
class WebOptions(ModelOptions):
    """Which model paints, what looks at its images, and where the page is."""

    config: Path | None = option(None, metavar="YAML", help="the model's settings (default: the model in the box)")
    model: Path | None = option(None, metavar="WEIGHTS", help="its weights: .ckpt, .safetensors or a diffusers folder")
    use_ema: bool = option(False, help="use the weights' running averages (model_ema.*)")
    classes: str | None = option(
        None, metavar="TABLE", help="FUSU, GID, LoveDA, MBRSC or a classes.json (default: what the settings name)"
    )
    preset: str | None = option(
        None,
        choices=tuple(PRESETS),
        help="speed that the page begins with (default: fast, and whole for the model in the box, which must be guided "
        "from the first step on)",
    )
    precision: str = option(
        "auto",
        choices=("auto", "32", "bf16", "16"),
        help="of the weights; auto: bf16 on a CPU that multiplies such numbers, in half the time, else 32",
    )
    scale: float | None = option(
        None,
        convert=number(0, 1000),
        help="guidance scale that the page begins with (default: 9; 1 for distilled models, 2 for the one in the box)",
    )
    mask_scale: float | None = option(
        None,
        convert=number(0, 1000),
        help="guidance by the mask that the page begins with (default: 1, and 2 for the model in the box)",
    )
    size: int = option(256, convert=pixels, metavar="PX", help="side of masks and images")
    references: Path | None = option(None, metavar="FOLDER", help="reference images to choose from")
    masks: Path | None = option(None, metavar="FOLDER", help="masks to start from")
    segmentor: tuple[str, ...] | None = option(
        None,
        nargs=2,
        metavar=("CONFIG", "WEIGHTS"),
        help="an mmseg segmentor: it makes masks of photos, and says what the filter would drop",
    )
    trust_config: bool = option(False, help="run a segmentor's config that lies in a folder of results")
    real_img_path: Path | None = option(
        None, metavar="FOLDER", help="real images, which say how large a class's loss may be: the filter's first pass"
    )
    real_label_path: Path | None = option(None, metavar="FOLDER", help="their masks, of the same names")
    from_loss: Path | None = option(
        None, metavar="FOLDER", help="in place of the two: a folder that `bash filter.sh` --save-loss wrote"
    )
    tolerance_margin: float = option(1.25, convert=number(0), help="limit = margin x mean loss of the class")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    host: str = option(
        "127.0.0.1", metavar="ADDRESS", help="address to listen on; 0.0.0.0: whoever reaches this machine"
    )
    port: int = option(7860, convert=integer(0, 65535), help="0: any that is free")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.config is None) != (self.model is None):
            raise InputError("‹config› and ‹model›: give both, or none for the model in the box")
        if (self.real_img_path is None) != (self.real_label_path is None):
            raise InputError("‹real_img_path› and ‹real_label_path›: give both, or none")
        if self.from_loss and self.real_img_path:
            raise InputError("‹from_loss› replaces ‹real_img_path› and ‹real_label_path›; leave out one or the other")

    def filled(self, box: Path = BOX) -> WebOptions:
        """These options, with what is in the box where no model is named; checked for what is not there.

        Raises:
            InputError: a file or folder that is named, or belongs to the box, is not there.
        """
        options = self
        if self.config is None:
            options = replace(self, config=box / "model.yaml", model=box / "model.safetensors")
            options = _with_box(options, box)
        for name, path in options._named():
            if not path.exists():
                if self.config is None and path.is_relative_to(box):
                    raise InputError(f"the model in the box is not here ({path}); name one by ‹config› and ‹model›")
                raise InputError(f"‹{name}› {path}: no such file or folder")
        return options

    def _named(self) -> Iterator[tuple[str, Path]]:
        for name in ("config", "model", "references", "masks", "real_img_path", "real_label_path", "from_loss"):
            if (path := getattr(self, name)) is not None:
                yield name, path
        for path in self.segmentor or ():
            yield "segmentor", Path(path)
        if self.classes is not None and self.classes.endswith(".json"):
            yield "classes", Path(self.classes)


def _with_box(options: WebOptions, box: Path) -> WebOptions:
    """The box's speed, guidance, classes, references, masks and segmentor, where nothing else is named."""
    given = options.from_loss or options.real_img_path
    return replace(
        options,
        preset=options.preset or "whole",
        scale=2.0 if options.scale is None else options.scale,
        mask_scale=2.0 if options.mask_scale is None else options.mask_scale,
        classes=options.classes or str(box / "classes.json"),
        references=options.references or box / "ref_img",
        masks=options.masks or box / "label_test",
        segmentor=options.segmentor or (str(box / "segmentor.py"), str(box / "segmentor.pth")),
        real_img_path=options.real_img_path if given else box / "img_train",
        real_label_path=options.real_label_path if given else box / "label_train",
    )
