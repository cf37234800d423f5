"""Our matcher, losses and post-processing inside the models of Hugging Face `transformers`.

    from mfkernels.integrations.transformers import patch
    patch()          # every model, now and later
    patch(model)     # this one only

MaskFormer, Mask2Former, OneFormer and EoMT (with DINOv2 or DINOv3) are known, of transformers 5.23
or later, before 6. What is computed stays the same: losses, gradients, random points of a seed,
configuration, outputs.

* matcher: the assignment of all images (for MaskFormer: of all layers too) is one call on the
  device of the logits; the indices stay there. SciPy is not called and nothing is copied to the
  host. Ties go as in SciPy. NaN and infinite costs are used only where no other matching is left.
* criterion: MaskFormer's focal and dice loss come from `mfkernels.mask_loss`, without any mask at
  full size; Mask2Former's and its relatives' are taken at the sampled points without copies of the
  targets. Both compute in float32 under autocast. Masks with values other than 0 and 1 (the padding
  of an image processor with `ignore_index`) go through transformers' own MaskFormer criterion,
  which is logged once; looking for them reads one flag back from a GPU, and breaks the graph of
  `torch.compile`: give masks of bool to avoid both. The losses at points, and both matchers, take
  such masks as they are. Parts that a subclass changes are called as before, and what it passes on
  to `super()` is served; MaskFormer's layers are matched one by one where the matcher is another
  one or has hooks. Pairs that are not one-to-one, and points chosen by a part of a subclass, are
  left to transformers' own mask losses, which is logged once.
* post_processing: `post_process_semantic_segmentation` and `post_process_panoptic_segmentation` of
  MaskFormer, Mask2Former and OneFormer give the same maps without holding all classes or all kept
  queries at full size. These functions are not the official ones, which `mfkernels` has kernels
  for: transformers multiplies classes and masks at low resolution and resizes afterwards. They are
  streamed in portions. EoMT's are left alone.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterable
from typing import ParamSpec, TypeVar

from torch import nn

from mfkernels.integrations.transformers import patching
from mfkernels.integrations.transformers.binding import Binding, living

__all__ = ["patch", "unpatch"]

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_lock = threading.RLock()


def _one_at_a_time(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Classes are changed, and the default dtype for a moment: threads take turns."""

    @functools.wraps(function)
    def taking_turns(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _lock:
            return function(*args, **kwargs)

    return taking_turns


class Patched(tuple[str, ...]):
    """What `patch` reached, such as `"MaskFormerLoss.forward"`."""

    not_reached: tuple[str, ...] = ()
    """What it did not reach, with the reasons."""


@_one_at_a_time
def patch(
    model: nn.Module | None = None,
    *,
    criterion: bool = True,
    matcher: bool = True,
    post_processing: bool = True,
) -> Patched:
    """Replace methods of the supported models. A second call changes nothing.

    A copy of a patched model is patched, and so are the replicas of `DataParallel`. A patched model
    that is pickled whole comes back unpatched. A `forward` that others have put into a module or
    a class is neither overwritten nor deleted: behind hooks of accelerate it is ours that runs, and
    what cannot be reached is said.

    Args:
        model: a model with one of the supported criteria in it; only this instance changes. None:
            the classes, so that all instances change, existing and new ones.
        criterion: the mask losses.
        matcher: the bipartite matching.
        post_processing: the image processors. They are no part of a model, so this has an effect
            with `model=None` only.

    Returns:
        What is ours now, such as `"MaskFormerLoss.forward"`; logged at the level INFO too. Its
        attribute `not_reached` names what is not, in which module (of all that there are, for
        `model=None`) and why; logged as a warning.

    Raises:
        RuntimeError: the installed transformers is of another version, a method has another
            signature, or a small test problem has another result. Nothing is changed then.
        TypeError: `model` is not a module.
        ValueError: `model` has none of the supported criteria and matchers in it.
    """
    patching.check_version()
    features = _features(criterion, matcher, post_processing and model is None)
    if model is None:
        return _patch_classes(features)
    found = _in_model(model, features)
    if features and not found:
        names = ", ".join(family.name for family in patching.FAMILIES)
        raise ValueError(
            f"{type(model).__name__} has no criterion or matcher of a supported model ({names})"
        )
    for family in dict.fromkeys(family for family, _, _, _ in found):
        patching.check_family(family, features)
    reached, missed = [], []
    for _, path, module, replacement in found:
        binding = replacement.bind()
        binding.patch_instance(module)
        reason = binding.why_not_reached(module)
        if reason is None:
            reached.append(binding.name)
        else:
            missed.append(f"{binding.name} ({path or 'the model'}: {reason})")
    return _said(f"this {type(model).__name__}", reached, missed)


def _patch_classes(features: frozenset[str]) -> Patched:
    replacements = list(patching.chosen(features))
    for family in dict.fromkeys(family for family, _ in replacements):
        patching.check_family(family, features)
    bindings = {
        binding.name: binding for _, replacement in replacements for binding in [replacement.bind()]
    }
    for binding in bindings.values():
        binding.patch_class()
    missed = []
    for binding, module in _living(bindings.values()):
        binding.follow(module)
        if reason := binding.why_not_reached(module):
            missed.append(f"{binding.name} (in a {type(module).__name__}: {reason})")
    missed += [
        f"{name} (others have replaced it)"
        for name, binding in bindings.items()
        if binding.is_of_others
    ]
    reached = [name for name, binding in bindings.items() if not binding.is_of_others]
    return _said("every model", reached, missed)


def _living(bindings: Collection[Binding]) -> list[tuple[Binding, nn.Module]]:
    """All modules there are, with their bindings."""
    if not bindings:
        return []
    return [
        (binding, module)
        for module in living(binding.owner for binding in bindings)
        for binding in bindings
        if isinstance(module, binding.owner)
    ]


@_one_at_a_time
def unpatch(
    model: nn.Module | None = None,
    *,
    criterion: bool = True,
    matcher: bool = True,
    post_processing: bool = True,
) -> None:
    """Put back what `patch` with the same arguments replaced: the very same functions.

    What was not patched stays as it is. A model patched by itself is not changed by
    `unpatch()`, nor the classes by `unpatch(model)`.

    Raises:
        TypeError: `model` is not a module.
    """
    features = _features(criterion, matcher, post_processing and model is None)
    if model is not None:
        for _, _, module, replacement in _in_model(model, features):
            for binding in replacement.bound():
                binding.unpatch_instance(module)
        return
    bindings = [
        binding
        for _, replacement in patching.chosen(features)
        for binding in replacement.bound()
        if binding.everywhere
    ]
    for binding in bindings:
        binding.unpatch_class()
    for binding, module in _living(bindings):
        binding.follow(module)


def _said(where: str, reached: Iterable[str], missed: Iterable[str]) -> Patched:
    names = Patched(dict.fromkeys(reached))
    names.not_reached = tuple(dict.fromkeys(missed))
    _logger.info("mfkernels serves in %s: %s", where, ", ".join(names) or "nothing")
    if names.not_reached:
        _logger.warning("mfkernels does not serve in %s: %s", where, "; ".join(names.not_reached))
    return names


def _features(criterion: bool, matcher: bool, post_processing: bool) -> frozenset[str]:
    wanted = {"criterion": criterion, "matcher": matcher, "post_processing": post_processing}
    return frozenset(name for name, on in wanted.items() if on)


def _in_model(
    model: nn.Module, features: frozenset[str]
) -> list[tuple[patching.Family, str, nn.Module, patching.Replacement]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    # A class whose module is not loaded has no instances.
    owners: list[tuple[patching.Family, patching.Replacement, type[nn.Module]]] = [
        (family, replacement, owner)
        for family, replacement in patching.chosen(features)
        if (owner := replacement.find(load=False)) is not None
    ]
    return [
        (family, path, module, replacement)
        for path, module in model.named_modules()
        for family, replacement, owner in owners
        if isinstance(module, owner)
    ]
