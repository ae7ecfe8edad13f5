"""The filter: what a segmentor trained on real images finds wrong in synthesized ones, and what becomes of it.

It becomes 255 in their masks, as published; or is relabeled where the segmentor is sure; or counts less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command import note
from common.errors import InputError
from common.files import check_writable, digest, inside, only_writer, room_for
from common.pairing import MASK_SUFFIXES, Pair, faults_of, list_files, listed, pair_files, without_faults
from common.ranks import Ranks
from common.sound_pairs import sound_pairs
from post_processing.filter_losses import PixelLosses, read_saved_losses
from post_processing.filter_options import FilterOptions
from post_processing.filter_passes import Passes
from post_processing.filter_report import write_report
from post_processing.filter_state import REAL_LOSS, STATS, RealLoss, State, file_stamp

__all__ = ["FilterOptions", "Filtered", "filter_images"]


@dataclass(frozen=True)
class Filtered:
    """What the filter did.

    Attributes:
        names: of the images whose masks it wrote.
        statistics: what ``filter_stats.json`` holds.
        folder: where it all is.
    """

    names: list[str]
    statistics: dict[str, Any]
    folder: Path

    @property
    def kept_share(self) -> float:
        """Of the masks' pixels, 0..1."""
        classes = self.statistics["per_class"].values()
        kept, dropped = (sum(int(values[key]) for values in classes) for key in ("kept", "dropped"))
        return kept / max(kept + dropped, 1)

    @property
    def summary(self) -> str:
        """The same in a line."""
        classes = self.statistics["per_class"].values()
        pixels = max(sum(values["kept"] + values["dropped"] for values in classes), 1)
        share, what = self.kept_share, "of their pixels kept"
        if any("mean_weight" in values for values in classes):
            total = sum((values["mean_weight"] or 0) * (values["kept"] + values["dropped"]) for values in classes)
            share, what = total / pixels, "is the mean weight of their pixels"
        text = f"{len(self.names)} masks in {self.folder}, {100 * share:.1f} % {what}"
        if relabeled := sum(values.get("relabeled", 0) for values in classes):
            text += f", {100 * relabeled / pixels:.1f} % relabeled"
        return f"{text}; {STATS} and filter_stats.svg say more"


@dataclass(frozen=True, eq=False)
class _Start:
    """What both sources of losses give: the passes, what real images showed, and what is to be filtered."""

    passes: Passes
    real: RealLoss
    pairs: list[Pair]
    left_out: list[str]


def filter_images(options: FilterOptions, segmentor: Callable[[], PixelLosses] | None = None) -> Filtered | None:
    """Measures the real images, filters the masks of the synthesized ones, reports; a stopped run goes on.

    Args:
        options: with ``from_loss``, no segmentor is needed.
        segmentor: loads the segmentor, once it is known that there is room for results.

    Returns:
        What was done; None in processes beside the first.

    Raises:
        InputError: options, files or a folder's earlier contents do not fit; or a loss is no number.
    """
    _refuse_folders(options)
    outputs = options.outputs()
    with room_for("‹filtered_mask_path›", options.filtered_mask_path):
        ranks = Ranks()
        for name, folder in outputs.items():
            check_writable(folder, name)
        with ranks.first_holds(*(only_writer(folder, name) for name, folder in outputs.items())):
            if options.from_loss:
                start = _from_saved_losses(options, options.from_loss, ranks)
            elif segmentor is not None:
                start = _from_segmentor(options, segmentor(), ranks)
            else:
                raise InputError("‹from_loss›: without it, a segmentor is needed")
            if ranks.rank == 0:
                _say(start, options)
            records = start.passes.filter_synthesized(start.pairs, start.real)
            if ranks.rank:
                return None
            report = write_report(options, start.real, records, start.left_out)
            return Filtered(sorted(records), report, options.filtered_mask_path)


def _refuse_folders(options: FilterOptions) -> None:
    """Refuses output folders inside input folders."""
    inputs = (
        options.real_img_path,
        options.real_label_path,
        options.syn_img_path,
        options.syn_mask_path,
        options.from_loss,
    )
    for name, out in options.outputs().items():
        if folder := next((folder for folder in inputs if inside(out, folder)), None):
            raise InputError(f"{name} {out}: lies inside {folder}; name another one")
    named: dict[Path, str] = {}
    for name, out in options.outputs().items():
        if (other := named.setdefault(out.resolve(), name)) != name:
            raise InputError(f"{name} and {other}: name two folders")


def _from_segmentor(options: FilterOptions, segmentor: PixelLosses, ranks: Ranks) -> _Start:
    """Looks at all files, then measures the real images."""
    paths = (options.real_img_path, options.real_label_path, options.syn_img_path)
    real_images, real_masks, images = (path for path in paths if path)
    checkpoint, *others = segmentor.weight_files()
    labels, skip = segmentor.labels(), options.skip_invalid

    def check() -> Any:
        named = ("‹real_img_path›", "‹real_label_path›"), ("‹syn_img_path›", "‹syn_mask_path›")
        how: dict[str, Any] = {"skip_invalid": skip, "look": segmentor.look, "several_maps": options.several_maps}
        how["workers"] = max(1, options.num_workers)
        real = sound_pairs(real_images, real_masks, named[0], labels, same_size=True, **how)
        return real, sound_pairs(images, options.syn_mask_path, named[1], labels, **how)

    real, synthesized = ranks.once(check)
    state = State(
        options.filtered_mask_path,
        {
            "config": segmentor.settings(),
            "checkpoint": digest(checkpoint),
            "real images": digest([(pair.name, file_stamp(pair.image, pair.mask)) for pair in real.pairs]),
            **_rule_settings(options),
            **({"--ensemble": digest(*others)} if others else {}),
        },
    )
    ranks.once(state.open)
    passes = Passes(options, segmentor, state, ranks, options.batch_size)
    return _Start(passes, passes.measure_real(real.pairs), synthesized.pairs, real.left_out + synthesized.left_out)


def _from_saved_losses(options: FilterOptions, folder: Path, ranks: Ranks) -> _Start:
    """The same from a folder of losses, which says what the real images showed."""
    saved = read_saved_losses(folder)

    def check() -> tuple[list[Pair], list[str]]:
        named = "‹from_loss›", "‹syn_mask_path›"
        pairs, orphans = pair_files(
            list_files(folder, (".npy",), named[0]),
            list_files(options.syn_mask_path, MASK_SUFFIXES, named[1]),
            named,
            options.skip_invalid,
        )
        where = f"{named[0]} {folder}"
        faults = faults_of(pairs, lambda pair: saved.fault(pair.image, pair.mask), where)
        pairs, wrong = without_faults(pairs, faults, where, options.skip_invalid)
        return pairs, orphans + wrong

    pairs, left_out = ranks.once(check)
    state = State(options.filtered_mask_path, {"--from-loss": digest(folder / REAL_LOSS), **_rule_settings(options)})
    ranks.once(state.open)
    return _Start(Passes(options, saved, state, ranks), saved.real, pairs, left_out)


def _rule_settings(options: FilterOptions) -> dict[str, str | float]:
    """What the rule depends on, under the names that it has in folders' settings; the usual treatment has none."""
    settings: dict[str, str | float] = {
        "--tolerance-margin": options.tolerance_margin,
        "--unseen-class": options.unseen_class,
    }
    if options.treatment != "ignore":
        settings["--treatment"] = options.treatment
    if options.treatment == "relabel":
        settings["--sure"] = options.sure
    return settings


def _say(start: _Start, options: FilterOptions) -> None:
    """Names the files that are left out, and the classes that no real image shows."""
    if start.left_out:
        note(f"{len(start.left_out)} files left out: {listed(start.left_out)}")
    real = start.real
    if names := [name for name, pixels in zip(real.classes, real.pixels, strict=True) if not pixels]:
        fate = "become 255" if options.unseen_class == "ignore" else "are kept"
        note(f"warning: no real image shows {', '.join(names)}; their synthesized pixels {fate} (‹unseen_class›)")
