"""Mutated inputs, and what a command makes of them; all of it follows from a seed.

Three kinds of mutators, for what a file holds (``mutate_tree``), for its text (``mutate_text``) and for its bytes
(``mutate_bytes``); each takes a ``random.Random`` and returns what was done, in words, and the mutated input.
``observe`` runs a call in this process and says how it ended; ``command`` is such a call for a command of ``scripts``:

    rng = random.Random(7)
    for _ in range(100):
        what, tree = mutate_tree(json.loads(good), rng)
        path.write_text(json.dumps(tree))
        ending = observe(command("resample", "--table", path), seconds=20)
        assert ending.fine, f"{what}: {ending}"

``ending.kind`` is ``accepted`` (the call returned, exit code 0), ``refused`` (exit code 2 and one line ``error: ...``),
or one of the three that must not be: ``traceback``, ``lines`` (a refusal that is not one line) and ``hang``. A mutation
may be harmless, so whether ``accepted`` is right is for the caller to judge.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import resource
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    1000,
    2**31,
    2**63,
    10**30,
    10**400,
    0.0,
    0.5,
    -0.5,
    2.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "x",
    "abc",
    "0",
    "-1",
    "2.5",
    "nan",
    "null",
    "true",
    "1e400",
    "../..",
    "/",
    "/dev/null",
    "/dev/zero",
    "a" * 5000,
    "line\nbreak",
    "nul\0byte",
    "\ud800",
    "\u202e",
    "é",
    "${x}",
    "${oc.env:HOME}",
    "${",
    "???",
    "{}",
    "%s",
    "{epoch",
    "os.system",
    "builtins.exec",
    "torch.nn.Identity",
    [],
    {},
    [[]],
    [{}],
    {"": None},
    [None],
    [0],
    [1, 2],
    ["x"],
    [1, [2, [3]]],
    {"x": 1},
    {"target": "os.system"},
    {"target": "os.system", "params": {"command": "false"}},
    [1] * 1000,
)
"""What stands in the place of a good value; JSON can hold all of it but NaN, the infinities and the lone surrogate."""

ODD_TEXTS = (
    "\0",
    "\r",
    "\n",
    "\t",
    "\x1b[31m",
    "\ufeff",
    "\u2028",
    "\U0001f600",
    "é",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "'",
    "#",
    "- ",
    "&a ",
    "*a ",
    "<<: ",
    "!!python/object/apply:os.system ",
    "%YAML 9.9",
    "---\n",
    "...",
    "null",
    "NaN",
    "1e999",
    "-" * 50,
    "[" * 2000,
    "{a: " * 300,
    "9" * 5000,
    "\\u0000",
    "\\",
    "${x}",
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "utf-7", "cp037")


def paths_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a tree of dicts and lists, the root's ``()`` first."""
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths_of(value, (*path, key))


def value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a place."""
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with another value at a place."""
    if not path:
        return value
    tree = copy.deepcopy(tree)
    value_at(tree, path[:-1])[path[-1]] = value
    return tree


def mutate_tree(tree: Any, rng: random.Random, odd: tuple[Any, ...] = ODD_VALUES) -> tuple[str, Any]:
    """One change of a tree of dicts, lists and scalars, as JSON and YAML files hold.

    Args:
        tree: left as it is.
        rng: where all choices come from.
        odd: values to put in the place of others.

    Returns:
        what was done, and the changed copy.
    """
    path = rng.choice(list(paths_of(tree)))
    here, name = value_at(tree, path), ".".join(map(str, path)) or "(all)"
    how = rng.choice(("odd", "odd", "odd", "drop", "rename", "add", "near", "wrap", "nest", "swap"))
    if how == "drop" and path:
        changed = copy.deepcopy(tree)
        del value_at(changed, path[:-1])[path[-1]]
        return f"{name} is dropped", changed
    if how == "rename" and path and isinstance(path[-1], str):
        changed = copy.deepcopy(tree)
        parent = value_at(changed, path[:-1])
        parent[path[-1] + "_"] = parent.pop(path[-1])
        return f"{name} is renamed", changed
    if how == "add" and isinstance(here, dict | list):
        value, changed = rng.choice(odd), copy.deepcopy(tree)
        inner = value_at(changed, path)
        inner.update(unheard_of=value) if isinstance(inner, dict) else inner.append(value)
        return f"{name} gets {value!r:.60}", changed
    if how == "near" and isinstance(here, int | float) and not isinstance(here, bool):
        value = rng.choice((-here, here + 1, here - 1, here * 1000, here / 3, float(here), str(here), here * 10**12))
        return f"{name} is {value!r}", replaced(tree, path, value)
    if how == "wrap":
        return f"{name} is in a list", replaced(tree, path, [here])
    if how == "nest":
        value = here
        for _ in range(rng.choice((50, 400))):
            value = {"a": value}
        return f"{name} is nested deeply", replaced(tree, path, value)
    if how == "swap":
        other = rng.choice(list(paths_of(tree)))
        return f"{name} is what {'.'.join(map(str, other))} is", replaced(tree, path, value_at(tree, other))
    value = rng.choice(odd)
    return f"{name} is {value!r:.60}", replaced(tree, path, value)


def mutate_text(text: str, rng: random.Random) -> tuple[str, bytes]:
    """One change of a text file: cut, repeated, torn, with odd texts in it, or in another encoding.

    Returns:
        what was done, and the changed file.
    """
    lines = text.splitlines(keepends=True) or [""]
    i, at = rng.randrange(len(lines)), rng.randrange(len(text) + 1)
    how = rng.choice(("cut", "drop", "double", "insert", "insert", "insert", "indent", "encode", "shuffle", "empty"))
    if how == "cut":
        return f"cut after {at} characters", text[:at].encode(errors="surrogatepass")
    if how == "drop":
        return f"line {i + 1} is dropped", "".join(lines[:i] + lines[i + 1 :]).encode()
    if how == "double":
        return f"line {i + 1} is doubled", "".join(lines[: i + 1] + lines[i:]).encode()
    if how == "indent":
        moved = rng.choice((" ", "\t", "   ")) + lines[i]
        return f"line {i + 1} is indented", "".join([*lines[:i], moved, *lines[i + 1 :]]).encode()
    if how == "encode":
        encoding = rng.choice(ENCODINGS)
        return f"in {encoding}", text.encode(encoding, errors="replace")
    if how == "shuffle":
        rng.shuffle(lines)
        return "lines in another order", "".join(lines).encode()
    if how == "empty":
        return "empty", rng.choice((b"", b"\n", b" ", b"null", b"0", b"[]", b"{}", b'""', b"x"))
    odd = rng.choice(ODD_TEXTS)
    return f"{odd!r:.30} at {at}", (text[:at] + odd + text[at:]).encode()


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One change of a binary file: bits flipped, cut, blocks of zeros, doubled or moved, bytes inserted, or emptied.

    Returns:
        what was done, and the changed file.
    """
    at = rng.randrange(len(data) + 1)
    size = min(len(data) - at, rng.choice((1, 4, 64, 4096)))
    how = rng.choice(("flip", "flip", "flips", "cut", "zeros", "ones", "double", "insert", "remove", "append", "empty"))
    if how == "flip" and at < len(data):
        return f"a bit of byte {at}", data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == "flips" and data:
        changed = bytearray(data)
        for _ in range(20):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return "20 bytes", bytes(changed)
    if how == "cut":
        return f"cut after {at} bytes", data[:at]
    if how in ("zeros", "ones"):
        block = (b"\0" if how == "zeros" else b"\xff") * size
        return f"{size} bytes of {how} at {at}", data[:at] + block + data[at + size :]
    if how == "double":
        return f"{size} bytes doubled at {at}", data[: at + size] + data[at:]
    if how == "remove":
        return f"{size} bytes removed at {at}", data[:at] + data[at + size :]
    if how == "append":
        return "more bytes at the end", data + rng.randbytes(rng.choice((1, 100, 5000)))
    if how == "empty":
        return "other content", rng.choice((b"", b"\0", b"\0" * 1000, b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"{}"))
    return f"bytes inserted at {at}", data[:at] + rng.randbytes(rng.choice((1, 8, 300))) + data[at:]


@dataclass(frozen=True)
class Ending:
    """How a call ended; ``text`` is its refusal, or the traceback."""

    kind: str
    text: str = ""

    @property
    def fine(self) -> bool:
        """Accepted, or refused as it should be."""
        return self.kind in ("accepted", "refused")


class _TooLong(BaseException):
    """Time is up; not an ``Exception``, which the code under test may catch."""


def observe(call: Callable[[], object], seconds: float = 20, memory: int | None = None) -> Ending:
    """Runs a call in this process, in the main thread, and says how it ended.

    Args:
        call: ends by returning, or by ``SystemExit`` as commands do.
        seconds: after which it hangs.
        memory: bytes of address space that it may take beyond what this process has; more is a ``MemoryError``.

    Returns:
        see the module.
    """

    def too_long(number: int, frame: Any) -> None:
        raise _TooLong

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    before = signal.signal(signal.SIGALRM, too_long)
    log_level = logging.root.level
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with _address_space(memory):
                    call()
            except SystemExit as end:
                code = end.code
    except _TooLong:
        return Ending("hang", f"after {seconds} s")
    except BaseException:
        return Ending("traceback", traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        logging.root.setLevel(log_level)
    if not code:
        return Ending("accepted", out.getvalue())
    said = err.getvalue() + out.getvalue()
    errors = [line for line in err.getvalue().splitlines() if line.strip()]
    if "Traceback" in said:
        return Ending("traceback", said)
    first = next((i for i, line in enumerate(errors) if line.startswith("error: ")), None)
    if code != 2 or first is None or first != len(errors) - 1:
        return Ending("lines", f"exit code {code}: {said}")
    return Ending("refused", errors[first])


@contextlib.contextmanager
def _address_space(more: int | None) -> Iterator[None]:
    if more is None:
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def command(name: str, *args: object) -> Callable[[], object]:
    """``python -m scripts.<name> ARGS`` as a call for ``observe``."""

    def call() -> None:
        before = sys.argv
        sys.argv = [name, *map(str, args)]
        try:
            runpy.run_module(f"scripts.{name}", run_name="__main__")
        finally:
            sys.argv = before

    return call
