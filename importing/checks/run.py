"""``tisynth check``: looks a data set over, and says what commands would refuse, and what they would not notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.classes import ClassTable, load_class_table
from common.errors import InputError
from common.files import atomic_path, write_json
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files, pair_files
from importing.checks import rules
from importing.checks.copies import copies
from importing.checks.facts import Facts, facts_of
from importing.checks.findings import ERROR, NOTE, SEVERITIES, WARNING, Finding
from importing.checks.lists import CountTokens, lists
from importing.checks.options import CheckOptions
from importing.checks.page import page

_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Checked:
    """What was found: as a report, and as text."""

    report: dict[str, Any]
    text: str

    @property
    def clean(self) -> bool:
        """Whether nothing was found that weighs as an error."""
        return bool(self.report["errors"] == 0)


def check_data(options: CheckOptions, count_tokens: CountTokens) -> Checked:
    """Checks a data set in this project's layout.

    Args:
        options: the data, and where to write what is found.
        count_tokens: tokens of a prompt, without start and end.

    Raises:
        InputError: there is no data set, or no class table.
    """
    root = options.data
    if not root.is_dir():
        raise InputError(f"‹data› {root}: no such folder")
    splits = sorted(path.name.removeprefix("img_") for path in root.glob("img_*") if path.is_dir())
    if not splits:
        raise InputError(
            f"‹data› {root}: has no folder img_train, nor any other img_...; import the data: tisynth import"
        )
    splits.sort(key=lambda split: _ORDER.index(split) if split in _ORDER else len(_ORDER))
    table = load_class_table(options.classes or _own_table(root))
    findings: list[Finding] = []
    pairs: list[tuple[str, Path, Path | None]] = []
    for split in splits:
        found, missing = _pairs(root, split)
        pairs += [(split, image, mask) for image, mask in found]
        findings += missing
    references, unread = _references(root)
    pairs += [("ref", path, None) for path in references]
    findings += unread
    facts = facts_of(pairs, table.labels, options.num_workers)
    by_split = rules.shares(facts, table)
    findings += rules.readable(facts) + rules.numbering(facts, table) + rules.sizes(facts) + rules.empty(facts, table)
    findings += rules.classes(by_split, table)
    findings += copies([one for one in facts if not one.image_fault], options.near)
    masks = [mask for _, _, mask in pairs if mask is not None]
    findings += lists(root, masks, count_tokens, options.follow_links)
    findings.sort(key=lambda finding: list(SEVERITIES).index(finding.severity))
    checked = _checked(root, table, facts, by_split, findings)
    if options.json is not None:
        write_json(checked.report, options.json)
    if options.html is not None:
        text = page(checked.report, findings, facts, table)
        with atomic_path(options.html) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return checked


def _own_table(root: Path) -> str:
    path = root / "classes.json"
    if not path.is_file():
        raise InputError(f"‹data› {root}: has no classes.json; name the class table with ‹classes›")
    return str(path)


def _references(root: Path) -> tuple[list[Path], list[Finding]]:
    """Reference images, and what is wrong with their folder."""
    if not (root / "ref_img").is_dir():
        return [], []
    left_out: list[str] = []
    try:
        found = list(list_files(root / "ref_img", IMAGE_SUFFIXES, "ref_img", left_out).values())
    except InputError as error:
        return [], [Finding(WARNING, "unread", f"references cannot be used: {error}")]
    message = "references are of a kind or in a place that is not read"
    return found, [Finding(WARNING, "unread", message, left_out)] if left_out else []


def _pairs(root: Path, split: str) -> tuple[list[tuple[Path, Path]], list[Finding]]:
    """Images and masks of a split, and what has no partner."""
    images, masks = root / f"img_{split}", root / f"label_{split}"
    left_out: list[str] = []
    if not masks.is_dir():
        return [], [Finding(ERROR, "partner", f"img_{split} has no folder label_{split} beside it")]
    try:
        found, orphans = pair_files(
            list_files(images, IMAGE_SUFFIXES, images.name, left_out),
            list_files(masks, MASK_SUFFIXES, masks.name, left_out),
            (images.name, masks.name),
            skip_invalid=True,
        )
    except InputError as error:
        return [], [Finding(ERROR, "partner", str(error))]
    findings = []
    if orphans:
        told = [line.replace(f"{root}/", "") for line in orphans]
        findings.append(Finding(ERROR, "partner", f"files of {split} have no partner", told))
    if left_out:
        findings.append(
            Finding(WARNING, "unread", f"files of {split} are of a kind or in a place that is not read", left_out)
        )
    return [(pair.image, pair.mask) for pair in found], findings


def _checked(
    root: Path,
    table: ClassTable,
    facts: Sequence[Facts],
    by_split: dict[str, NDArray[Any]],
    findings: Sequence[Finding],
) -> Checked:
    images = {split: sum(one.split == split for one in facts) for split in dict.fromkeys(one.split for one in facts)}
    names = [*table.names, "unlabeled"]
    shares = {
        split: dict(zip(names, (pixels / max(pixels.sum(), 1)).round(6).tolist(), strict=True))
        for split, pixels in by_split.items()
    }
    number = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    report = {
        "data": str(root),
        "classes": list(table.names),
        "images": images,
        "shares": shares,
        "errors": number[ERROR],
        "warnings": number[WARNING],
        "notes": number[NOTE],
        "findings": [finding.recorded() for finding in findings],
    }
    width = max(len(name) for name in names) + 2
    lines = [f"{'':{width}}" + "".join(f"{split:>10}" for split in images)]
    lines.append(f"{'images':{width}}" + "".join(f"{count:>10}" for count in images.values()))
    for name in names:
        cells = [f"{shares[split][name]:>9.2%} " if split in shares else f"{'':10}" for split in images]
        if name != "unlabeled" or any(share[name] for share in shares.values()):
            lines.append((f"{name:{width}}" + "".join(cells)).rstrip())
    told = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in number.items())
    return Checked(report, "\n".join([*lines, "", *(finding.text() for finding in findings), told]))
