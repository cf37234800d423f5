"""Use our matcher, losses and post-processing in the models of Hugging Face `transformers`.

    from mfkernels.integrations.transformers import patch
    patch()          # all models, existing and new ones
    patch(model)     # this model only

Supported are MaskFormer, Mask2Former, OneFormer and EoMT (with DINOv2 or DINOv3) of transformers
5.23 or later, before 6. Losses, gradients, the random points of a seed, configuration and outputs
stay the same.

* matcher: all images (for MaskFormer also all layers) are matched in one call on the device of the
  logits, and the indices stay there. SciPy is not called, and nothing is copied to the host. Ties
  are broken as in SciPy. NaN and infinite costs are used only if no other matching is left.
* criterion: MaskFormer's focal and dice losses are computed by `mfkernels.mask_loss`, which holds
  no mask at full size. The losses of Mask2Former, OneFormer and EoMT are computed at the sampled
  points without copies of the targets. Both compute in float32 under autocast.

  - Masks with values other than 0 and 1 (such as the padding of an image processor with
    `ignore_index`) go through transformers' own MaskFormer criterion, which is logged once. The
    check reads one flag back from a GPU and breaks the graph of `torch.compile`; pass bool masks to
    avoid both. The losses at points and both matchers support such masks.
  - Methods that a subclass overrides are called as before; if they call `super()`, ours runs
    there. If the matcher was replaced or has hooks, or the criterion's `forward` is that of a
    subclass, MaskFormer's layers are matched one by one.
  - Pairs that are not one-to-one, and masks padded or picked or points chosen by a method of a
    subclass, go through transformers' own mask losses, which is logged once.
* post_processing: `post_process_semantic_segmentation`, `post_process_panoptic_segmentation` and
  `post_process_instance_segmentation` of all four image processors return the same results without
  holding all classes or all queries at full size: they work in chunks. They do not use the
  inference kernels of `mfkernels`, because transformers computes something else than the official
  code: it multiplies classes and masks at low resolution and then resizes. EoMT's class scores are
  computed for one image at a time, at the size of the model's input. If a subclass overrides
  `merge_image_patches` or `unpad_image` of EoMT, the methods that call it run as before.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterable
from typing import ParamSpec, TypeVar

from torch import nn

from mfkernels.integrations.transformers import patching
from mfkernels.integrations.transformers.binding import Binding, live_modules

__all__ = ["patch", "unpatch"]

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_lock = threading.RLock()


def _synchronized(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Hold a lock: classes are changed, and for a moment the process's default dtype."""

    @functools.wraps(function)
    def locked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _lock:
            return function(*args, **kwargs)

    return locked


class Patched(tuple[str, ...]):
    """The names of the methods that `patch` replaced, such as `"MaskFormerLoss.forward"`."""

    not_reached: tuple[str, ...] = ()
    """The methods that `patch` could not replace, with the reasons."""


@_synchronized
def patch(
    model: nn.Module | None = None,
    *,
    criterion: bool = True,
    matcher: bool = True,
    post_processing: bool = True,
) -> Patched:
    """Replace methods of the supported models. A second call changes nothing.

    Copies of a patched model and the replicas of `DataParallel` are patched too. A patched model
    that is pickled as a whole is unpatched when it is loaded. A `forward` that other code has set
    on a module or class is neither overwritten nor deleted. Hooks of accelerate then run our
    method; for other wrappers, the result says what could not be replaced.

    Args:
        model: a model that contains a supported criterion; only this instance changes. None: patch
            the classes, which changes all existing and new instances.
        criterion: replace the mask losses.
        matcher: replace the bipartite matching.
        post_processing: replace the post-processing of image processors. They are not part of a
            model, so this has an effect with `model=None` only.

    Returns:
        The names of the replaced methods, such as `"MaskFormerLoss.forward"`, a tuple; they are
        also logged at level INFO. Its attribute `not_reached` lists the methods that could not be
        replaced, with the module (for `model=None`, of all existing modules) and the reason; they
        are also logged as a warning.

    Raises:
        RuntimeError: the installed version of transformers is not supported, a method has another
            signature, or a small test problem has another result. Nothing is changed then.
        TypeError: `model` is not a module.
        ValueError: `model` contains no supported criterion or matcher.
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
    return _report(f"this {type(model).__name__}", reached, missed)


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
    for binding, module in _live_bindings(bindings.values()):
        binding.follow(module)
        if reason := binding.why_not_reached(module):
            missed.append(f"{binding.name} (in a {type(module).__name__}: {reason})")
    missed += [
        f"{name} (other code has replaced it)"
        for name, binding in bindings.items()
        if binding.is_foreign
    ]
    reached = [name for name, binding in bindings.items() if not binding.is_foreign]
    return _report("every model", reached, missed)


def _live_bindings(bindings: Collection[Binding]) -> list[tuple[Binding, nn.Module]]:
    """Return each existing module with each binding of its class."""
    if not bindings:
        return []
    return [
        (binding, module)
        for module in live_modules(binding.owner for binding in bindings)
        for binding in bindings
        if isinstance(module, binding.owner)
    ]


@_synchronized
def unpatch(
    model: nn.Module | None = None,
    *,
    criterion: bool = True,
    matcher: bool = True,
    post_processing: bool = True,
) -> None:
    """Undo `patch` with the same arguments: restore the original function objects.

    What was not patched stays unchanged. `unpatch()` does not change a model that was patched by
    `patch(model)`, and `unpatch(model)` does not change the classes.

    Args:
        model, criterion, matcher, post_processing: as in `patch`.

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
    for binding, module in _live_bindings(bindings):
        binding.follow(module)


def _report(where: str, reached: Iterable[str], missed: Iterable[str]) -> Patched:
    names = Patched(dict.fromkeys(reached))
    names.not_reached = tuple(dict.fromkeys(missed))
    _logger.info("mfkernels replaced in %s: %s", where, ", ".join(names) or "nothing")
    if names.not_reached:
        _logger.warning(
            "mfkernels could not replace in %s: %s", where, "; ".join(names.not_reached)
        )
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
