"""Replace a method in a class, or in the class of a single module.

A module that is patched alone gets a subclass of its class as its class. No method is bound to the
module itself, so that its copies and replicas use their own weights. A `forward` that other code
has set on a module (hooks of accelerate, wrappers) is neither overwritten nor deleted.
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

from mfkernels.integrations.matching import called, is_bound_to

Method = Callable[..., Any]
ORIGINAL = "_mfkernels_original"
"""The attribute of a replacement that holds the method it replaces."""
_ITSELF = "_mfkernels_itself"
"""The attribute of a replacement that holds the replacement itself. `functools.wraps` copies it to
wrappers, which are told from replacements by not being the function that it holds."""
BEHIND_HOOK = "_old_forward"
"""The attribute in which accelerate keeps the bound method that its hook runs."""
_BASE, _BINDINGS = "_mfkernels_base", "_mfkernels_bindings"
"""Attributes of the class of a patched module: its class before, and the bindings."""
_DISABLED = "_mfkernels_disabled"
"""The attribute of a module that holds the names of the bindings that are disabled. It is used if
other code has derived a class from ours, so that `unpatch` cannot restore the class."""


def is_replacement(method: Any) -> bool:
    function = getattr(method, "__func__", method)
    return getattr(function, _ITSELF, None) is function is not None


def official(method: Any) -> Any:
    """Return the function that a patch of ours has replaced, or the function itself."""
    function = getattr(method, "__func__", method)
    return getattr(function, ORIGINAL) if is_replacement(function) else function


def wrapped(method: Any) -> Iterator[Any]:
    """Yield the function and the functions that it wraps, the outermost first."""
    yield method
    if hasattr(method, "__wrapped__"):
        yield from wrapped(method.__wrapped__)


def _names(code: Any) -> set[str]:
    """Return the names of variables and attributes, and the strings, in a code object.

    Those of nested functions are included.
    """
    if isinstance(code, str):
        return {code}
    if not isinstance(code, CodeType):
        return set()
    return {*code.co_names, *code.co_freevars}.union(*map(_names, code.co_consts))


def is_around(method: Any, original: Method) -> bool:
    """Whether a method is this function, patched or not, or wraps it."""
    return any(official(link) is original for link in wrapped(method))


def overridden_part(module: Any, original: Method, *parts: str) -> str | None:
    """Return the first of the methods `parts`, which `original` calls, that `module` overrides.

    None: it overrides none of them.
    """
    kinds = type(module).__mro__
    name = original.__name__
    # The last class is the one that defines the method; those before it may hold replacements.
    (*_, home) = (kind for kind in kinds if is_around(vars(kind).get(name), original))
    for part in parts:
        if part not in vars(home):  # another version of transformers, or another model
            continue
        found = called(module, part)
        if found is None or official(found) is not official(vars(home)[part]):
            return part
    return None


class PatchedModule:
    """Copying and pickling of a patched module, whose class is created at run time."""

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
        # Protocol 2 and later always store the class of the object itself.
        reduced = super().__reduce_ex__(1)
        if not isinstance(reduced, tuple) or type(self) not in reduced[1]:
            return reduced
        kinds = [_base_class(kind) if kind is type(self) else kind for kind in reduced[1]]
        return (reduced[0], tuple(kinds), *reduced[2:])


@dataclass(eq=False)
class Binding:
    """One replaced method of one class."""

    owner: type
    attribute: str
    original: Method
    method: Method
    """The replacement; if it is disabled for a module, it calls the original."""
    mixin: type
    """A subclass of `owner` with the replacement; a base of the class of a patched module."""
    everywhere: bool = field(default=False)
    """Whether the class itself is patched, and so all its instances."""

    @property
    def name(self) -> str:
        return f"{self.owner.__name__}.{self.attribute}"

    @functools.cached_property
    def is_foreign(self) -> bool:
        """Whether other code had already patched the method; its patch then stays."""
        # A wrapper may copy the names of the method that it wraps, but not its globals.
        links = wrapped(self.original)
        homes = [getattr(link, "__globals__", {}).get("__name__", "") for link in links]
        packages = {"torch", self.owner.__module__.partition(".")[0]}
        return any(home.partition(".")[0] not in packages for home in homes)

    def patch_class(self) -> None:
        if self.is_foreign:
            return
        self.everywhere = True
        if vars(self.owner)[self.attribute] is self.original:
            setattr(self.owner, self.attribute, self.method)

    def unpatch_class(self) -> None:
        self.everywhere = False
        if vars(self.owner)[self.attribute] is self.method:
            setattr(self.owner, self.attribute, self.original)

    def is_enabled(self, module: Any) -> bool:
        if self.everywhere:
            return True
        return isinstance(module, self.mixin) and self.name not in _disabled(module)

    def patch_instance(self, module: nn.Module) -> None:
        if isinstance(module, self.mixin):
            self._set_enabled(module, True)
        if not (self.is_foreign or isinstance(module, self.mixin)):
            module.__class__ = _patched_class(
                _base_class(type(module)), (*_bindings(type(module)), self)
            )
        self.follow(module)

    def unpatch_instance(self, module: nn.Module) -> None:
        kind = type(module)
        if self in _bindings(kind):
            left = tuple(binding for binding in _bindings(kind) if binding is not self)
            module.__class__ = _patched_class(_base_class(kind), left)
        elif isinstance(module, self.mixin):  # its class derives from ours: `fully_shard`, …
            self._set_enabled(module, False)
        self.follow(module)

    def _set_enabled(self, module: nn.Module, on: bool) -> None:
        left = _disabled(module) - {self.name} if on else _disabled(module) | {self.name}
        vars(module).pop(_DISABLED, None)
        if left:
            vars(module)[_DISABLED] = left

    def follow(self, module: nn.Module) -> None:
        """Make a module run the method of its class, also through a hook of accelerate.

        A bound method of the class in the module's own attributes, which unpickling and removed
        hooks leave there, is deleted.
        """
        own = vars(module)
        if self._is_ours_or_original(own.get(self.attribute), module):
            del own[self.attribute]
        elif self._is_hooked(module):
            own[BEHIND_HOOK] = MethodType(getattr(type(module), self.attribute), module)

    def why_not_reached(self, module: nn.Module) -> str | None:
        """Return why a call of the module does not run the replacement; None if it does."""
        if self.is_foreign:
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
    """Return the binding of `build(original)`, the same object for repeated calls."""
    key = (owner, attribute, original)
    if key in _known:
        return _known[key]
    ours = build(original)

    @functools.wraps(original)
    def method(module: Any, *args: Any, **kwargs: Any) -> Any:
        # Hooks and wrappers may hold a bound method of this function even after `unpatch`.
        return (ours if binding.is_enabled(module) else original)(module, *args, **kwargs)

    setattr(method, ORIGINAL, original)
    setattr(method, _ITSELF, method)
    # Image processors, which are not modules, are patched only in their class.
    is_module = issubclass(owner, nn.Module)
    mixin = (
        type(owner.__name__, (PatchedModule, owner), {attribute: method})
        if is_module
        else PatchedModule
    )
    binding = _known[key] = Binding(owner, attribute, original, method, mixin)
    return binding


def bound(owner: type, attribute: str) -> list[Binding]:
    """Return all bindings that exist for a method."""
    return [binding for key, binding in _known.items() if key[:2] == (owner, attribute)]


@functools.cache
def _patched_class(base: type, bindings: tuple[Binding, ...]) -> type:
    """Make a subclass of `base` with these replacements and the same name."""
    if not bindings:
        return base
    mixins = tuple(binding.mixin for binding in bindings)
    bases = mixins if any(issubclass(mixin, base) for mixin in mixins) else (base, *mixins)
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, bases, {**names, _BASE: base, _BINDINGS: bindings})


def _base_class(kind: type) -> type:
    """Return the class before it was patched."""
    base: type = vars(kind).get(_BASE, kind)
    return base


def _disabled(module: Any) -> frozenset[str]:
    """Return the names of the bindings that are disabled for a module."""
    names: frozenset[str] = vars(module).get(_DISABLED, frozenset())
    return names


def _bindings(kind: type) -> tuple[Binding, ...]:
    bindings: tuple[Binding, ...] = vars(kind).get(_BINDINGS, ())
    return bindings


def _family(owner: type[Any]) -> Iterator[type[Any]]:
    """Yield the class and all its subclasses."""
    yield owner
    for kind in owner.__subclasses__():
        yield from _family(kind)


def live_modules(owners: Iterable[type]) -> list[nn.Module]:
    """Return all modules of these classes and their subclasses in this process."""
    kinds = {kind for owner in owners for kind in _family(owner) if issubclass(kind, nn.Module)}
    # The first check is needed because some types of other libraries cannot be hashed.
    return [
        item
        for item in gc.get_objects()
        if issubclass(type(item), nn.Module) and type(item) in kinds
    ]
