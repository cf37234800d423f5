"""Put a replacement into a class, or into the class of one module.

A module that is patched alone gets a subclass of its class. Nothing is bound to the module itself,
so its copies and replicas use their own weights. A `forward` that other code has set on a module
(hooks of accelerate, wrappers) is neither overwritten nor deleted.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, MethodType
from typing import Any

from torch import nn

from mfkernels.integrations.matching import is_bound_to

Method = Callable[..., Any]
ORIGINAL = "_mfkernels_original"
"""The attribute of a replacement that holds the method it replaces."""
_ITSELF = "_mfkernels_itself"
"""The attribute that holds the replacement itself: a wrapper has a copy of its attributes."""
BEHIND_HOOK = "_old_forward"
"""The attribute in which accelerate keeps the bound method that its hook runs."""
_BELOW, _BINDINGS = "_mfkernels_below", "_mfkernels_bindings"
"""Attributes of the class of a patched module: the class before, and the replacements."""
_NOT_IN_FORCE = "_mfkernels_not_in_force"
"""The attribute of a module whose class was derived from ours by other code: what is unpatched."""


def is_replacement(method: Any) -> bool:
    function = getattr(method, "__func__", method)
    return getattr(function, _ITSELF, None) is function is not None


def official(method: Any) -> Any:
    """Return the function before any patch of ours."""
    function = getattr(method, "__func__", method)
    return getattr(function, ORIGINAL) if is_replacement(function) else function


def wrapped(method: Any) -> Iterator[Any]:
    """Yield the function and the functions that it wraps, from the outside to the inside."""
    yield method
    if hasattr(method, "__wrapped__"):
        yield from wrapped(method.__wrapped__)


def _names(code: Any) -> set[str]:
    """Return the variables, attributes and strings in a function and the functions inside it."""
    if isinstance(code, str):
        return {code}
    if not isinstance(code, CodeType):
        return set()
    return {*code.co_names, *code.co_freevars}.union(*map(_names, code.co_consts))


def is_around(method: Any, original: Method) -> bool:
    """Whether a method is this function, patched or not, or wraps it."""
    return any(official(link) is original for link in wrapped(method))


class Served:
    """What the class of a patched module has in addition to the replaced methods."""

    def __copy__(self) -> Any:
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())  # type: ignore[attr-defined]
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[attr-defined]
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the original class, which can be loaded without `mfkernels`."""
        # Later protocols insist on the class of the object itself.
        reduced = super().__reduce_ex__(1)
        if not isinstance(reduced, tuple) or type(self) not in reduced[1]:
            return reduced
        kinds = [_below(kind) if kind is type(self) else kind for kind in reduced[1]]
        return (reduced[0], tuple(kinds), *reduced[2:])


@dataclass(eq=False)
class Binding:
    """One replaced method of one class."""

    owner: type
    attribute: str
    original: Method
    method: Method
    """The replacement; if it is not in force, it calls the original."""
    mixin: type
    """A class with the replacement; a base, before `owner`, of the class of a patched module."""
    everywhere: bool = field(default=False)

    @property
    def name(self) -> str:
        return f"{self.owner.__name__}.{self.attribute}"

    @functools.cached_property
    def is_of_others(self) -> bool:
        """Whether other code had already patched the method; its patch then stays."""
        # What wraps a method may bear its names; its globals are its own.
        links = wrapped(self.original)
        homes = [getattr(link, "__globals__", {}).get("__name__", "") for link in links]
        packages = {"torch", self.owner.__module__.partition(".")[0]}
        return any(home.partition(".")[0] not in packages for home in homes)

    def patch_class(self) -> None:
        if self.is_of_others:
            return
        self.everywhere = True
        if vars(self.owner)[self.attribute] is self.original:
            setattr(self.owner, self.attribute, self.method)

    def unpatch_class(self) -> None:
        self.everywhere = False
        if vars(self.owner)[self.attribute] is self.method:
            setattr(self.owner, self.attribute, self.original)

    def is_in_force(self, module: Any) -> bool:
        if self.everywhere:
            return True
        return isinstance(module, self.mixin) and self.name not in _not_in_force(module)

    def patch_instance(self, module: nn.Module) -> None:
        if isinstance(module, self.mixin):
            self._set_in_force(module, True)
        if not (self.is_of_others or isinstance(module, self.mixin)):
            module.__class__ = _served(_below(type(module)), (*_bindings(type(module)), self))
        self.follow(module)

    def unpatch_instance(self, module: nn.Module) -> None:
        kind = type(module)
        if self in _bindings(kind):
            left = tuple(binding for binding in _bindings(kind) if binding is not self)
            module.__class__ = _served(_below(kind), left)
        elif isinstance(module, self.mixin):  # parametrizations, `fully_shard`
            self._set_in_force(module, False)
        self.follow(module)

    def _set_in_force(self, module: nn.Module, on: bool) -> None:
        left = _not_in_force(module) - {self.name} if on else _not_in_force(module) | {self.name}
        vars(module).pop(_NOT_IN_FORCE, None)
        if left:
            vars(module)[_NOT_IN_FORCE] = left

    def follow(self, module: nn.Module) -> None:
        """Make a module run the method of its class, also behind a hook of accelerate.

        A method that is bound to the module but is the class's own, as left by unpickling and
        removed hooks, is deleted.
        """
        own = vars(module)
        if self._is_ours_or_original(own.get(self.attribute), module):
            del own[self.attribute]
        elif self._is_hooked(module):
            own[BEHIND_HOOK] = MethodType(getattr(type(module), self.attribute), module)

    def why_not_reached(self, module: nn.Module) -> str | None:
        """Say why a call of the module does not run the replacement; None if it does."""
        if self.is_of_others:
            return f"other code has replaced the {self.attribute} of its class"
        own = vars(module).get(self.attribute)
        if own is not None and not self._is_hooked(module):
            return f"other code has set its {self.attribute} to a {type(own).__name__}"
        for kind in type(module).__mro__:
            method = vars(kind).get(self.attribute)
            if method is None:
                continue
            if is_around(method, self.original):
                return None
            names = _names(getattr(inspect.unwrap(method), "__code__", None))
            if self.attribute in names and "super" in names:
                continue
            own_one = f"{kind.__name__} has its own {self.attribute}"
            if not {self.attribute, self.owner.__name__} <= names:
                return own_one
            if not self.everywhere:
                return f"{own_one}, which calls {self.name}, not super(): use patch() without model"
        return None

    def _is_ours_or_original(self, method: Any, module: nn.Module) -> bool:
        return is_bound_to(method, module) and official(method.__func__) is self.original

    def _is_hooked(self, module: nn.Module) -> bool:
        kept = vars(module).get(BEHIND_HOOK)
        return self.attribute == "forward" and self._is_ours_or_original(kept, module)


_known: dict[tuple[type, str, Method], Binding] = {}


def bind(
    owner: type, attribute: str, original: Method, build: Callable[[Method], Method]
) -> Binding:
    """Return the binding of `build(original)`; always the same one for a method of a class."""
    key = (owner, attribute, original)
    if key in _known:
        return _known[key]
    ours = build(original)

    @functools.wraps(original)
    def method(module: Any, *args: Any, **kwargs: Any) -> Any:
        # Hooks and wrappers keep a bound method, this one, beyond `unpatch`.
        return (ours if binding.is_in_force(module) else original)(module, *args, **kwargs)

    setattr(method, ORIGINAL, original)
    setattr(method, _ITSELF, method)
    # Image processors are only patched everywhere.
    of_module = issubclass(owner, nn.Module)
    mixin = type(owner.__name__, (Served, owner), {attribute: method}) if of_module else Served
    binding = _known[key] = Binding(owner, attribute, original, method, mixin)
    return binding


def bound(owner: type, attribute: str) -> list[Binding]:
    """Return all bindings that were made for a method."""
    return [binding for key, binding in _known.items() if key[:2] == (owner, attribute)]


@functools.cache
def _served(below: type, bindings: tuple[Binding, ...]) -> type:
    """Make a subclass of `below` with these replacements and the same name."""
    if not bindings:
        return below
    mixins = tuple(binding.mixin for binding in bindings)
    bases = mixins if any(issubclass(mixin, below) for mixin in mixins) else (below, *mixins)
    names = {name: getattr(below, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(below.__name__, bases, {**names, _BELOW: below, _BINDINGS: bindings})


def _below(kind: type) -> type:
    below: type = vars(kind).get(_BELOW, kind)
    return below


def _not_in_force(module: Any) -> frozenset[str]:
    """Return the names of the bindings that are not in force for a module."""
    names: frozenset[str] = vars(module).get(_NOT_IN_FORCE, frozenset())
    return names


def _bindings(kind: type) -> tuple[Binding, ...]:
    bindings: tuple[Binding, ...] = vars(kind).get(_BINDINGS, ())
    return bindings


def _family(owner: type[Any]) -> Iterator[type[Any]]:
    """Yield the class and all its subclasses."""
    yield owner
    for kind in owner.__subclasses__():
        yield from _family(kind)


def living(owners: Iterable[type]) -> list[nn.Module]:
    """Yield all modules of these classes and their subclasses in this process."""
    kinds = {kind for owner in owners for kind in _family(owner) if issubclass(kind, nn.Module)}
    # Other libraries have types that cannot be hashed.
    return [
        item
        for item in gc.get_objects()
        if issubclass(type(item), nn.Module) and type(item) in kinds
    ]
