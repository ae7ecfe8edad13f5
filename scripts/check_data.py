r"""Looks a data set over: classes by split, numbering, sizes, missing files, copies across splits, prompts.

  python -m scripts.check_data DATA
  python -m scripts.check_data DATA --json check.json --html check.html

Ends with 0 where all is well, with 1 where something was found that weighs as an error: commands would refuse it, or
their scores would mean nothing. Warnings and notes do not count. What each finding means: docs/your_data.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from importing.checks.options import CheckOptions
from importing.checks.run import check_data


def tokens(prompt: str) -> int:
    """Tokens of a prompt by CLIP's vocabulary, without start and end."""
    from ldm.modules.tokenizer import ClipTokenizer  # loads torch, which is needed for long prompts alone

    return ClipTokenizer().reading(prompt).tokens


def main(words: Sequence[str] | None = None) -> int:
    """Parses, checks, tells."""
    checked = check_data(read_options(CheckOptions, __doc__ or "", words), tokens)
    print(checked.text)
    return 0 if checked.clean else 1


if __name__ == "__main__":
    run(main)
