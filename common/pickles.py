"""What a pickle holds, found without running any of it.

A pickle is a program for a small stack machine. Python's own machine looks up every function and class that the program
names, and calls them. This one looks nothing up: a name stays a name, and the few that may be called stand in a table
that its caller gives. So no name leads to another, whatever it is combined with.
"""

from __future__ import annotations

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

OPERATIONS = 2_000_000  # of one pickle; a checkpoint of a billion weights needs a hundred thousand
DEPTH = 100  # of containers in containers
VALUES = 10_000_000  # that a pickle may unfold to: a list of one list twice, 30 times over, is small in the file


class ContainsCodeError(Exception):
    """The pickle names a function or class that is not on the list."""


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names (``torch.FloatStorage``); never looked up."""

    full: str


@dataclass(eq=False)
class Inert:
    """Takes the place of an object of a class that is not loaded; what it was made of is kept, as data."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


class Source(Protocol):
    """What a pickle is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""

    def readline(self, size: int = -1, /) -> bytes:
        """Up to a line's end."""


# operations whose argument is a value: whole numbers, texts, bytes
_VALUE = re.compile(r"(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|(SHORT_)?(BIN)?(UNICODE|STRING|BYTES)8?|BYTEARRAY8")
_TAKEN_AS_IT_IS = {operation.name for operation in pickletools.opcodes if _VALUE.fullmatch(operation.name)}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SCALARS = (str, int, float, bool, bytes, complex, type(None), Name)


def interpret(
    source: Source,
    builders: Mapping[str, Callable[..., Any]],
    states: Mapping[type, Callable[[Any, Any], None]],
    constants: Mapping[str, Any],
    inert: Callable[[str], bool],
    persistent: Callable[[Any], Any],
) -> Any:
    """The value that one pickle describes; reads up to its end and not further.

    Args:
        source: at the pickle's start.
        builders: functions that the pickle may call, by their full names in it. They get values of the pickle, and
            must bear anything.
        states: how values of a type take a state after they were made: functions of value and state.
        constants: values that stand for names.
        inert: whether a name may stand for a class whose objects are kept as ``Inert``.
        persistent: what stands for a persistent id (a storage).

    Raises:
        ContainsCodeError: it names anything else; nothing was called.
        Exception: of many kinds: the pickle is damaged, too large, too deep, or uses what no checkpoint needs.
    """
    machine = _Machine(builders, states, constants, inert, persistent)
    for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], source))):
        if count > OPERATIONS:
            raise ValueError(f"its pickle has more than {OPERATIONS:,} steps")
        machine.step(operation.name, argument)
    value = machine.stack.pop()
    _check_extent(value)
    return value


class _Machine:
    def __init__(
        self,
        builders: Mapping[str, Callable[..., Any]],
        states: Mapping[type, Callable[[Any, Any], None]],
        constants: Mapping[str, Any],
        inert: Callable[[str], bool],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.builders, self.states, self.constants = builders, states, constants
        self.inert, self.persistent = inert, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lies under each mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _TAKEN_AS_IT_IS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])] if len(stack) >= size else [stack[-size]]
        elif handler := getattr(self, f"do_{name}", None):  # of the methods below; the opcodes' names are pickletools'
            handler(argument)
        else:
            raise ValueError(f"no checkpoint uses the pickle's {name}")

    # ---- stack

    def do_MARK(self, _: None) -> None:
        if len(self.below) > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep")
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What stands above the last mark, which goes."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def do_POP(self, _: None) -> None:
        self.stack.pop()

    def do_POP_MARK(self, _: None) -> None:
        self.marked()

    def do_DUP(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_PROTO(self, _: int) -> None:
        pass

    do_FRAME = do_STOP = do_PROTO

    # ---- containers

    def do_TUPLE(self, _: None) -> None:
        items = self.marked()
        self.stack.append(tuple(items))

    def do_LIST(self, _: None) -> None:
        items = self.marked()
        self.stack.append(items)

    def do_FROZENSET(self, _: None) -> None:
        items = self.marked()
        self.stack.append(frozenset(map(plain, items)))

    def do_DICT(self, _: None) -> None:
        items = self.marked()
        self.stack.append({})
        self._set(items)

    def do_APPEND(self, _: None) -> None:
        self._append([self.stack.pop()])

    def do_APPENDS(self, _: None) -> None:
        self._append(self.marked())

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list and not isinstance(target, Inert):
            raise ValueError(f"it appends to a {type(target).__name__}")
        (target.items if isinstance(target, Inert) else target).extend(items)

    def do_ADDITEMS(self, _: None) -> None:
        items, target = self.marked(), self.stack[-1]
        if type(target) is not set:
            raise ValueError(f"it adds to a {type(target).__name__}")
        target.update(map(plain, items))

    def do_SETITEM(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def do_SETITEMS(self, _: None) -> None:
        self._set(self.marked())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items.extend(items)
        elif isinstance(target, dict):
            target.update((plain(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        else:
            raise ValueError(f"it sets items of a {type(target).__name__}")

    # ---- names, and what becomes of them

    def do_GLOBAL(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self._name(module, name)

    def do_STACK_GLOBAL(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("it names something by no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full in self.constants:
            self.stack.append(self.constants[full])
        elif full in self.builders or self.inert(full):
            self.stack.append(Name(full))
        else:
            raise ContainsCodeError(full)

    def do_REDUCE(self, _: None) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self._call(called, arguments)

    do_NEWOBJ = do_REDUCE

    def do_NEWOBJ_EX(self, _: None) -> None:
        keywords, arguments, called = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if keywords:
            raise ValueError("it calls by keyword")
        self._call(called, arguments)

    def do_INST(self, argument: str) -> None:
        arguments = self.marked()
        self.do_GLOBAL(argument)
        self._call(self.stack.pop(), tuple(arguments))

    def do_OBJ(self, _: None) -> None:
        called, *arguments = self.marked()
        self._call(called, tuple(arguments))

    def _call(self, called: Any, arguments: Any) -> None:
        if not isinstance(called, Name) or type(arguments) is not tuple:
            raise ValueError(f"it calls a {type(called).__name__}")
        if builder := self.builders.get(called.full):
            self.stack.append(builder(*arguments))
        elif called.full.lower().endswith("dict"):
            self.stack.append(OrderedDict())  # its items follow
        else:
            self.stack.append(Inert(called.full, arguments))

    def do_BUILD(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is OrderedDict:  # state dicts carry the versions of their modules beside their items
            versions = state.get("_metadata") if isinstance(state, dict) else None
            if isinstance(versions, dict) and all(isinstance(version, dict) for version in versions.values()):
                target._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
        elif isinstance(target, Inert):
            target.state = state
        elif take := self.states.get(type(target)):
            take(target, state)
        else:
            raise ValueError(f"it gives a state to a {type(target).__name__}")

    def do_BINPERSID(self, _: None) -> None:
        self.stack.append(self.persistent(self.stack.pop()))


def plain(key: Any) -> Any:
    """A key of a mapping, or a member of a set: plain, since hashing what is nested deeply breaks the interpreter."""
    if isinstance(key, _SCALARS) or (isinstance(key, tuple) and all(isinstance(part, _SCALARS) for part in key)):
        return key
    raise ValueError(f"a {type(key).__name__} as a key")


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        return iter(value.values())
    return iter(value if isinstance(value, (list, tuple, set, frozenset)) else ())


def _check_extent(value: Any) -> None:
    """Refuses what is nested too deeply, contains itself, or unfolds to too many values; not within ``Inert``."""
    known: dict[int, int] = {}  # container -> values in it, unfolded
    path: list[tuple[Any, Iterator[Any], int]] = [(value, _parts(value), 1)]
    on_path = {id(value)}
    while path:
        container, parts, count = path.pop()
        for part in parts:
            if id(part) in on_path:
                raise ValueError("it contains itself")
            count += known.get(id(part), 1)
            if isinstance(part, (dict, list, tuple, set, frozenset)) and id(part) not in known:
                path += [(container, parts, count - 1), (part, _parts(part), 1)]
                on_path.add(id(part))
                break
            if count > VALUES:
                raise ValueError(f"it unfolds to more than {VALUES:,} values")
        else:
            known[id(container)] = count
            on_path.discard(id(container))
            if path:  # hand the count on to what contains it
                above, rest, before = path.pop()
                path.append((above, rest, before + count))
        if len(path) > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep")
