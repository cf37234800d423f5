"""Runs the opcodes of a pickle on plain data, with limits.

Python's own unpickler calls whatever a pickle names and trusts every length in it. This one makes
containers, numbers and text only. A name is a mere token: what may be made of it is decided by a
table (see `rebuild`), and everything else is refused.
"""

from __future__ import annotations

import codecs
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_OPERATIONS = 500_000
"""Of one file; a container counts as several. A tensor takes about 40."""
_CONTAINER_OPERATIONS = 4
MAX_DEPTH = 32
"""Of containers within each other."""
MAX_KEY = 1024
"""Characters of a key."""
GROWTH, SLACK = 4, 1 << 20
"""The content of a file may take this many times its size, and so many bytes more."""


class RefusedError(Exception):
    """A pickle asks for something that is not read; the message goes after "it"."""


@dataclass
class Budget:
    """What a file, with all pickles inside it, may still take."""

    memory: int
    operations: int = MAX_OPERATIONS

    @classmethod
    def of(cls, size: int) -> Budget:
        """For a file of `size` bytes."""
        return cls(GROWTH * size + SLACK)

    def spend(self, memory: int) -> None:
        """Accounts for bytes, before they are taken."""
        self.memory -= memory
        if self.memory < 0:
            raise RefusedError(f"would take more than {GROWTH} times its size in memory")

    def work(self, operations: int) -> None:
        """Accounts for steps."""
        self.operations -= operations
        if self.operations < 0:
            raise RefusedError(f"takes more than {MAX_OPERATIONS:,} operations to read")


@dataclass(frozen=True)
class Name:
    """A global that a pickle names; never looked up."""

    path: str


class Filled(ABC):
    """Something whose content a pickle gives after making it; see `rebuild`."""

    @abstractmethod
    def fill(self, state: Any) -> None:
        """Takes the content; refuses what does not fit."""

    def value(self) -> Any:
        """What stands in containers in its place."""
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
    """One pickle after another out of `data`.

    Args:
        data: the bytes of the file.
        budget: shared by all pickles of a file.
        known: how to make data of a name and the arguments it is called with.
        tokens: further names that may occur but not be called.
        persistent: makes the value of a persistent id.

    Attributes:
        position: of the first byte that is not read yet.
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
        """The value of the next pickle.

        Raises:
            RefusedError: it holds something that is not read, or breaks a limit.
            Exception: of any type, where it is damaged.
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
                raise RefusedError(
                    f"has the opcode {code:#04x}, which data of this kind does not need"
                )
            step(self)

    # Arguments

    def take(self, count: int) -> memoryview:
        """The next bytes; those of no pickle but of what lies between them, too."""
        end = self.position + count
        if count < 0 or end > len(self._data):
            raise ValueError("it ends early")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def unpack(self, form: str) -> Any:
        """The next number, as `struct` writes it."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def _line(self) -> bytes:
        length = 128  # grows with the line: a search to the end of the data would cost its length
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
            raise ValueError("a text without quotes")
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
            raise ValueError("a name that is no text")
        path = f"{module}.{name}" if len(module) + len(name) < MAX_KEY else module[:80]
        if path not in self._known and path not in self._tokens:
            raise RefusedError(
                f"names {_shown(path)}, which is code; only containers, numbers, text, arrays and "
                "tensors are read"
            )
        self._push(Name(path))

    def _stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _call(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        make = self._known.get(name.path) if isinstance(name, Name) else None
        if make is None or not isinstance(arguments, _Tuple):
            raise RefusedError(f"calls {_described(name)}; only names of data can be")
        self._push(make(*arguments))

    def _call_with_keywords(self) -> None:
        if self._stack.pop():
            raise RefusedError("calls a name with keywords")
        self._call()

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Filled):
            target.fill(state)
        elif not isinstance(target, _Dict):  # of an OrderedDict, attributes are no content
            raise RefusedError(f"changes {_described(target)}")

    def _persistent_value(self) -> None:
        if self._persistent is None:
            raise RefusedError("refers to something outside itself")
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
        # A set is a list here: its elements are never hashed.
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
    """An empty mapping that a pickle may go on to fill."""
    return _new(_Dict)


def update(target: Any, keys: Sequence[Any], values: Sequence[Any]) -> None:
    """Puts values into a mapping of a pickle, under keys that are text, or small numbers.

    Other keys are never hashed: the hash of a nested tuple takes as long as its author likes.
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
            raise RefusedError(f"has {_described(key)} as a key; expected a short text")
        target[key] = value


def _new(container: type[Any]) -> Any:
    made = container()
    made.depth, made.closed = 1, False
    return made


def _open(target: Any, container: type[Any]) -> Any:
    """A container that is in no other yet: whose depth can still change."""
    if not isinstance(target, container) or target.closed:
        raise RefusedError(f"adds to {_described(target)} that cannot grow")
    return target


def _enclose(items: Iterable[Any]) -> int:
    """The depth of a container of these."""
    depth = 0
    for item in items:
        if isinstance(item, _Tuple | _List | _Dict):
            depth = max(depth, item.depth)
            if not isinstance(item, _Tuple):
                item.closed = True
    if depth >= MAX_DEPTH:
        raise RefusedError(f"nests containers more than {MAX_DEPTH} deep")
    return depth + 1


def _settled(value: Any) -> Any:
    return value.value() if isinstance(value, Filled) else value


def kind(value: Any) -> str:
    """What a value of a pickle is, in Python's word."""
    name = type(value).__name__
    return name[1:].lower() if name.startswith("_") else name


def _described(value: Any) -> str:
    return _shown(value.path) if isinstance(value, Name) else f"a {kind(value)}"


def _shown(text: str) -> str:
    """Of a text that may be long or hold control characters, a piece that can be printed."""
    return text[:80].encode("unicode_escape").decode()
