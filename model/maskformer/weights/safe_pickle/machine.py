"""An interpreter for the opcodes of pickles that makes plain data only, within limits.

Python's own unpickler calls whatever a pickle names, and trusts every length in it. This one makes
only containers, numbers and text. A name is never looked up: a table (see `rebuild`) defines what
may be made from it, and any other name is an error.
"""

from __future__ import annotations

import codecs
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_OPERATIONS = 500_000
"""Limit of the operations per file. A tensor takes about 40, and a container counts as several."""
_CONTAINER_OPERATIONS = 4
MAX_DEPTH = 32
"""Limit of the depth of nested containers."""
MAX_KEY = 1024
"""Limit of the length of a key in characters."""
GROWTH, SLACK = 4, 1 << 20
"""The contents of a file may take `GROWTH` times its size plus `SLACK` bytes of memory."""


class UnsafePickleError(Exception):
    """A pickle contains something that is unsafe or not supported. The message is a predicate,
    whose subject is the file: "it ...".
    """


@dataclass
class Budget:
    """The memory and operations that reading a file, with all pickles inside it, may still take."""

    memory: int
    operations: int = MAX_OPERATIONS

    @classmethod
    def of(cls, size: int) -> Budget:
        """Make the budget of a file of `size` bytes."""
        return cls(GROWTH * size + SLACK)

    def spend(self, memory: int) -> None:
        """Subtract bytes of memory, before they are allocated."""
        self.memory -= memory
        if self.memory < 0:
            raise UnsafePickleError(f"would take more than {GROWTH} times its size in memory")

    def work(self, operations: int) -> None:
        """Subtract operations."""
        self.operations -= operations
        if self.operations < 0:
            raise UnsafePickleError(f"takes more than {MAX_OPERATIONS:,} operations to read")


@dataclass(frozen=True)
class Name:
    """The name of a global object in a pickle, which is never looked up."""

    path: str


class Filled(ABC):
    """An object that a pickle first creates and then fills with its state; see `rebuild`."""

    @abstractmethod
    def fill(self, state: Any) -> None:
        """Set the state; raise an error if it is not valid."""

    def value(self) -> Any:
        """Return the value that replaces the object in containers."""
        return self


class _List(list[Any]):
    __slots__ = ("closed", "depth")
    closed: bool
    depth: int


class _Dict(dict[Any, Any]):
    __slots__ = ("closed", "depth")
    closed: bool
    depth: int


class _Tuple(tuple[Any, ...]):
    depth: int


class Machine:
    """Reads one pickle after another from `data`.

    Args:
        data: the bytes of the file.
        budget: the budget, shared by all pickles of a file.
        known: for each name that a pickle may call, a function that makes data from the arguments.
        tokens: further names that may occur, but not be called.
        persistent: returns the value of a persistent id.

    Attributes:
        position: the position of the first unread byte.
    """

    def __init__(
        self,
        data: memoryview,
        budget: Budget,
        known: Mapping[str, Callable[..., Any]],
        tokens: Iterable[str] = (),
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.position = 0
        self.budget = budget
        self._data = data
        self._known = known
        self._tokens = frozenset(tokens)
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read the next pickle.

        Raises:
            UnsafePickleError: it contains something unsafe or unsupported, or exceeds a limit.
            Exception: any type, if the pickle is damaged.
        """
        self._stack, self._marks, self._memo = [], [], {}
        while True:
            self.budget.work(1)
            code = self._data[self.position]
            self.position += 1
            if code == _STOP:
                return _settled(self._stack.pop())
            step = self._STEPS.get(code)
            if step is None:
                raise UnsafePickleError(
                    f"has the opcode {code:#04x}, which weight files do not need"
                )
            step(self)

    # Arguments

    def take(self, count: int) -> memoryview:
        """Read the next bytes, either of a pickle or of the data after it."""
        end = self.position + count
        if count < 0 or end > len(self._data):
            raise ValueError("it ends early")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def unpack(self, form: str) -> Any:
        """Read the next number in a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def _line(self) -> bytes:
        length = 128  # grows, because searching all of the data for each line would be quadratic
        while True:
            piece = bytes(self._data[self.position : self.position + length])
            line, end, _ = piece.partition(b"\n")
            if end:
                self.position += len(line) + 1
                return line
            if len(piece) < length:
                raise ValueError("it ends early")
            length *= 8

    def _sized(self, form: str) -> memoryview:
        return self.take(self.unpack(form))

    # Values

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _integer(self) -> None:
        line = self._line()
        self._push(line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L")))

    def _quoted(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
            raise ValueError("a string without quotes")
        self._push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))

    # Containers

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _tuple(self, count: int | None = None) -> None:
        items = self._since_mark() if count is None else [self._stack.pop() for _ in range(count)]
        self.budget.work(_CONTAINER_OPERATIONS)
        made = _Tuple(map(_settled, items if count is None else reversed(items)))
        made.depth = _enclose(made)
        self._push(made)

    def _list(self, items: Iterable[Any] = ()) -> None:
        self.budget.work(_CONTAINER_OPERATIONS)
        self._push(_new(_List))
        self._extend(items)

    def _extend(self, items: Iterable[Any]) -> None:
        target = _open(self._stack[-1], _List)
        settled = [_settled(item) for item in items]
        target.depth = max(target.depth, _enclose(settled))
        target.extend(settled)

    def _dict(self, items: Sequence[Any] = ()) -> None:
        self.budget.work(_CONTAINER_OPERATIONS)
        self._push(_new(_Dict))
        self._update(items)

    def _update(self, items: Sequence[Any]) -> None:
        update(self._stack[-1], items[::2], items[1::2])

    # Names

    def _name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is not a string")
        path = f"{module}.{name}" if len(module) + len(name) < MAX_KEY else module[:80]
        if path not in self._known and path not in self._tokens:
            raise UnsafePickleError(
                f"names {_shown(path)}, which is code; only containers, numbers, strings, arrays "
                "and tensors are supported"
            )
        self._push(Name(path))

    def _stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _call(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        make = self._known.get(name.path) if isinstance(name, Name) else None
        if make is None or not isinstance(arguments, _Tuple):
            raise UnsafePickleError(
                f"calls {_describe(name)}, which is not a supported type of data"
            )
        self._push(make(*arguments))

    def _call_with_keywords(self) -> None:
        if self._stack.pop():
            raise UnsafePickleError("calls a name with keyword arguments")
        self._call()

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Filled):
            target.fill(state)
        elif not isinstance(target, _Dict):  # attributes of an OrderedDict are ignored
            raise UnsafePickleError(f"changes {_describe(target)}")

    def _persistent_value(self) -> None:
        if self._persistent is None:
            raise UnsafePickleError("refers to external data")
        self._push(self._persistent(self._stack.pop()))

    _STEPS: ClassVar[dict[int, Callable[[Machine], object]]] = {
        0x80: lambda m: m.take(1),  # PROTO
        0x95: lambda m: m.take(8),  # FRAME
        ord("("): lambda m: m._marks.append(len(m._stack)),
        ord("0"): lambda m: m._stack.pop(),
        ord("1"): lambda m: m._since_mark(),
        ord("2"): lambda m: m._push(m._stack[-1]),
        ord("N"): lambda m: m._push(None),
        0x88: lambda m: m._push(True),
        0x89: lambda m: m._push(False),
        ord("I"): _integer,
        ord("L"): _integer,
        ord("K"): lambda m: m._push(m.unpack("<B")),
        ord("M"): lambda m: m._push(m.unpack("<H")),
        ord("J"): lambda m: m._push(m.unpack("<i")),
        0x8A: lambda m: m._push(int.from_bytes(m._sized("<B"), "little", signed=True)),
        0x8B: lambda m: m._push(int.from_bytes(m._sized("<i"), "little", signed=True)),
        ord("F"): lambda m: m._push(float(m._line())),
        ord("G"): lambda m: m._push(m.unpack(">d")),
        ord("S"): _quoted,
        ord("T"): lambda m: m._push(str(m._sized("<i"), "latin1")),
        ord("U"): lambda m: m._push(str(m._sized("<B"), "latin1")),
        ord("V"): lambda m: m._push(str(m._line(), "raw-unicode-escape")),
        ord("X"): lambda m: m._push(str(m._sized("<I"), "utf-8", "surrogatepass")),
        0x8C: lambda m: m._push(str(m._sized("<B"), "utf-8", "surrogatepass")),
        0x8D: lambda m: m._push(str(m._sized("<Q"), "utf-8", "surrogatepass")),
        ord("B"): lambda m: m._push(m._sized("<I")),
        ord("C"): lambda m: m._push(m._sized("<B")),
        0x8E: lambda m: m._push(m._sized("<Q")),
        0x96: lambda m: m._push(m._sized("<Q")),  # BYTEARRAY8
        ord("t"): _tuple,
        ord(")"): lambda m: m._tuple(0),
        0x85: lambda m: m._tuple(1),
        0x86: lambda m: m._tuple(2),
        0x87: lambda m: m._tuple(3),
        # A set becomes a list, so that its elements are never hashed.
        ord("]"): _list,
        0x8F: _list,
        ord("l"): lambda m: m._list(m._since_mark()),
        0x91: lambda m: m._list(m._since_mark()),
        ord("a"): lambda m: m._extend([m._stack.pop()]),
        ord("e"): lambda m: m._extend(m._since_mark()),
        0x90: lambda m: m._extend(m._since_mark()),
        ord("}"): _dict,
        ord("d"): lambda m: m._dict(m._since_mark()),
        ord("s"): lambda m: m._update([m._stack.pop(), m._stack.pop()][::-1]),
        ord("u"): lambda m: m._update(m._since_mark()),
        ord("p"): lambda m: m._memo.__setitem__(int(m._line()), m._stack[-1]),
        ord("q"): lambda m: m._memo.__setitem__(m.unpack("<B"), m._stack[-1]),
        ord("r"): lambda m: m._memo.__setitem__(m.unpack("<I"), m._stack[-1]),
        0x94: lambda m: m._memo.__setitem__(len(m._memo), m._stack[-1]),
        ord("g"): lambda m: m._push(m._memo[int(m._line())]),
        ord("h"): lambda m: m._push(m._memo[m.unpack("<B")]),
        ord("j"): lambda m: m._push(m._memo[m.unpack("<I")]),
        ord("c"): lambda m: m._name(str(m._line(), "utf-8"), str(m._line(), "utf-8")),
        0x93: _stack_name,
        ord("R"): _call,
        0x81: _call,  # NEWOBJ
        0x92: _call_with_keywords,
        ord("b"): _build,
        ord("Q"): _persistent_value,
    }


_STOP = ord(".")


def new_dict() -> dict[Any, Any]:
    """Return an empty mapping that the pickle may fill."""
    return _new(_Dict)


def update(target: Any, keys: Sequence[Any], values: Sequence[Any]) -> None:
    """Add values to a mapping in a pickle. Keys must be strings or small numbers.

    No other keys are hashed, because hashing a nested tuple can take arbitrarily long.
    """
    if len(keys) != len(values):
        raise ValueError("a key without a value")
    _open(target, _Dict)
    settled = [_settled(value) for value in values]
    target.depth = max(target.depth, _enclose(settled))
    for key, value in zip(keys, settled, strict=True):
        is_text = type(key) is str and len(key) <= MAX_KEY
        is_number = type(key) is int and abs(key) < 1 << 31  # optimisers number their parameters
        if not (is_text or is_number):
            raise UnsafePickleError(f"has {_describe(key)} as a key; expected a short string")
        target[key] = value


def _new(container: type[Any]) -> Any:
    made = container()
    made.depth, made.closed = 1, False
    return made


def _open(target: Any, container: type[Any]) -> Any:
    """Check that a container is not inside another one yet, so that its depth may still change."""
    if not isinstance(target, container) or target.closed:
        raise UnsafePickleError(f"adds to {_describe(target)} that cannot grow")
    return target


def _enclose(items: Iterable[Any]) -> int:
    """Close the containers among items, and return the depth of a container with these items."""
    depth = 0
    for item in items:
        if isinstance(item, _Tuple | _List | _Dict):
            depth = max(depth, item.depth)
            if not isinstance(item, _Tuple):
                item.closed = True
    if depth >= MAX_DEPTH:
        raise UnsafePickleError(f"nests containers more than {MAX_DEPTH} levels deep")
    return depth + 1


def _settled(value: Any) -> Any:
    return value.value() if isinstance(value, Filled) else value


def kind(value: Any) -> str:
    """Return the name of the Python type of a value in a pickle."""
    name = type(value).__name__
    return name[1:].lower() if name.startswith("_") else name


def _describe(value: Any) -> str:
    return _shown(value.path) if isinstance(value, Name) else f"a {kind(value)}"


def _shown(text: str) -> str:
    """Return the start of a text that may be long or contain control characters, safe to print."""
    return text[:80].encode("unicode_escape").decode()
