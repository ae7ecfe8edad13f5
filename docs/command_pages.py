"""A hook of MkDocs: docs/commands.md gets each command's description and options, as its --help has them.

The options are read from the commands' own parsers, so that the page cannot lag behind.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, PLACE = "commands.md", "<!-- the build puts each command's options here -->"
TASKS = {"segmentor": ("", "predict")}  # a command within a command has a parser of its own


class _Read(Exception):
    """A parser was about to parse: it has all its options."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(script: str, *words: str) -> argparse.ArgumentParser:
    """The parser of ``scripts/<script>.py``, with its options; nothing is parsed, and no work is done."""

    def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if self.add_help:  # a parser without help looks for one option (--preset) ahead of the others
            raise _Read(self)
        return argparse.Namespace(preset=None), []

    own, given = argparse.ArgumentParser.parse_known_args, sys.argv
    argparse.ArgumentParser.parse_known_args = stop  # type: ignore[method-assign]
    sys.argv = [script, *words]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries say of themselves when they are imported
            runpy.run_module(f"scripts.{script}", run_name="__main__", alter_sys=False)
    except _Read as found:
        return found.parser
    finally:
        argparse.ArgumentParser.parse_known_args, sys.argv = own, given  # type: ignore[method-assign]
    raise RuntimeError(f"scripts/{script}.py: parses no options")


def described(text: str) -> Iterator[str]:
    """A module's docstring as Markdown: indented lines are code, what is between them text."""
    for part in re.split(r"((?:^ {2}.*\n?)+)", text.strip() + "\n", flags=re.M):
        if part.startswith("  "):
            yield f"```bash\n{dedent(part).rstrip()}\n```"
        elif part.strip():
            yield plain(part.strip())


def plain(text: str) -> str:
    """A text without markup, as Markdown that shows it."""
    return re.sub(r"([*_\[\]`|])", r"\\\1", escape(text, quote=False))


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A parser's options as a definition list."""
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        formatter = parser._get_formatter()
        named = ", ".join(action.option_strings) or formatter._metavar_formatter(action, action.dest)(1)[0]
        if action.option_strings and action.nargs != 0:
            named += " " + formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        named = re.sub(r"(?<=[{,])([^{},]+),", r"\1, ", named)  # choices wrap
        wanted = " (required)" if action.required and action.option_strings else ""
        told = formatter._expand_help(action) if action.help else ""
        yield f"`{named}`{wanted}\n:   {plain(told) or 'see above'}\n"


@lru_cache(maxsize=1)
def commands() -> str:
    """The sections of all commands, as Markdown."""
    sys.path.insert(0, str(ROOT))
    from tisynth.__main__ import COMMANDS

    parts = []
    for name, (script, _) in COMMANDS.items():
        for task in TASKS.get(script, ("",)):
            more = [task] if task else []
            parser = parser_of(script, *more)
            title, typed = " ".join(["tisynth", name, *more]), " ".join(["python -m", f"scripts.{script}", *more])
            parts += [f"## {title} {{: #{'-'.join([name, *more])} }}", f"In a checkout: `{typed}`."]
            parts += [*described(parser.description or ""), *options(parser)]
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """See MkDocs."""
    return markdown.replace(PLACE, commands()) if page.file.src_uri == PAGE else markdown
