"""The lists of a data set: lines, the files that they name, and prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from common.errors import InputError
from common.lists import locate, parse_line, read_lines, text_fault
from common.schema import one_line
from importing.checks.findings import ERROR, NOTE, WARNING, Finding

TOKENS = 77  # of a prompt, start and end among them; what is longer is cut
_FIELDS = ("source", "target", "ref_image")
CountTokens = Callable[[str], int]


def lists(root: Path, masks: Collection[Path], count_tokens: CountTokens, follow_links: bool) -> list[Finding]:
    """What is wrong with the lists ``*_items.json`` of a folder.

    Args:
        root: the data set.
        masks: all mask files; those that no list names are told.
        count_tokens: of a prompt, without start and end; asked for long prompts alone.
        follow_links: see ``common.lists.locate``.
    """
    paths = sorted(root.glob("*_items.json"))
    if not paths:
        return [Finding(WARNING, "no-list", "there is no list (train_set_items.json), from which models are trained")]
    faults: list[str] = []
    long: list[str] = []
    bare: list[str] = []
    named: set[Path] = set()
    for path in paths:
        try:
            lines = read_lines(path)
        except InputError as error:
            faults.append(str(error))
            continue
        for number, text in lines:
            where = f"{path.name} line {number}"
            try:
                content = parse_line(text)
            except ValueError as error:
                faults.append(f"{where}: {error}")
                continue
            for field in (field for field in _FIELDS if field in content):
                try:
                    found = locate(str(content[field]), root, follow_links)
                    if field == "source":
                        named.add(found.resolve())
                except ValueError as error:
                    faults.append(f"{where}, field {field}: {error}")
            prompt = content.get("prompt")
            if not isinstance(prompt, str) or text_fault(prompt):
                faults.append(
                    f"{where}, field prompt: {text_fault(prompt) if isinstance(prompt, str) else 'must be text'}"
                )
            elif not prompt.strip():
                bare.append(where)
            # a token has a byte at least, so that short prompts need no tokenizer
            elif len(prompt.encode()) > TOKENS - 2 and (tokens := count_tokens(prompt)) > TOKENS - 2:
                long.append(f"{where}: {tokens + 2} tokens: {one_line(prompt, 80)}")
    found_all = []
    if faults:
        found_all.append(Finding(ERROR, "list", "lines of lists are faulty, or name files that are not there", faults))
    if long:
        message = f"prompts have more than {TOKENS} tokens, and are cut; shorten them, or paint with --long-prompts"
        found_all.append(Finding(WARNING, "long-prompt", message, long))
    if bare:
        found_all.append(Finding(NOTE, "no-prompt", "prompts are empty", bare))
    if unnamed := sorted(path.relative_to(root).as_posix() for path in masks if path.resolve() not in named):
        found_all.append(Finding(NOTE, "unlisted", "masks that no list names, and no training sees", unnamed))
    return found_all
