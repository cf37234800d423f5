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
  which is logged once; looking for them reads one flag back from a GPU. The losses at points take
  such masks as they are. Parts that a subclass changes are called as before, and MaskFormer's own
  criterion where the matcher is another one or has hooks.
* post_processing: `post_process_semantic_segmentation` and `post_process_panoptic_segmentation` of
  MaskFormer, Mask2Former and OneFormer give the same maps without holding all classes or all kept
  queries at full size. These functions are not the official ones, which `mfkernels` has kernels
  for: transformers multiplies classes and masks at low resolution and resizes afterwards. They are
  streamed in portions. EoMT's are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from mfkernels.integrations.transformers import patching

__all__ = ["patch", "unpatch"]

_logger = logging.getLogger(__name__)


def patch(
    model: nn.Module | None = None,
    *,
    criterion: bool = True,
    matcher: bool = True,
    post_processing: bool = True,
) -> tuple[str, ...]:
    """Replace methods of the supported models. A second call changes nothing.

    A copy of a patched model is patched. A patched model that is pickled whole comes back unpatched
    and does not follow the classes; `patch(model)` or `unpatch(model)` brings it back.

    Args:
        model: a model with one of the supported criteria in it; only this instance changes. None:
            the classes, so that all instances change, existing and new ones.
        criterion: the mask losses.
        matcher: the bipartite matching.
        post_processing: the image processors. They are no part of a model, so this has an effect
            with `model=None` only.

    Returns:
        What is ours now, such as `"MaskFormerLoss.forward"`; logged at the level INFO too.

    Raises:
        RuntimeError: the installed transformers is of another version, a method has another
            signature, or a small test problem has another result. Nothing is changed then.
        TypeError: `model` is not a module.
        ValueError: `model` has none of the supported criteria and matchers in it.
    """
    patching.check_version()
    features = _features(criterion, matcher, post_processing and model is None)
    if model is None:
        replacements = list(patching.chosen(features))
        for family in dict.fromkeys(family for family, _ in replacements):
            patching.check_family(family, features)
        for _, replacement in replacements:
            patching.patch_class(replacement)
        return _said("every model", [replacement for _, replacement in replacements])
    found = _in_model(model, features)
    if features and not found:
        names = ", ".join(family.name for family in patching.FAMILIES)
        raise ValueError(
            f"{type(model).__name__} has no criterion or matcher of a supported model ({names})"
        )
    for family in dict.fromkeys(family for family, _, _ in found):
        patching.check_family(family, features)
    for _, module, replacement in found:
        patching.patch_instance(module, replacement)
    return _said(f"this {type(model).__name__}", [replacement for _, _, replacement in found])


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
    if model is None:
        for _, replacement in patching.chosen(features):
            patching.unpatch_class(replacement)
        return
    for _, module, replacement in _in_model(model, features):
        patching.unpatch_instance(module, replacement)


def _said(where: str, replacements: Sequence[patching.Replacement]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(f"{r.owner}.{r.attribute}" for r in replacements))
    _logger.info("mfkernels serves in %s: %s", where, ", ".join(names) or "nothing")
    return names


def _features(criterion: bool, matcher: bool, post_processing: bool) -> frozenset[str]:
    wanted = {"criterion": criterion, "matcher": matcher, "post_processing": post_processing}
    return frozenset(name for name, on in wanted.items() if on)


def _in_model(
    model: nn.Module, features: frozenset[str]
) -> list[tuple[patching.Family, nn.Module, patching.Replacement]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    # A class whose module is not loaded has no instances.
    owners = [
        (family, replacement, owner)
        for family, replacement in patching.chosen(features)
        if (owner := replacement.find(load=False)) is not None
    ]
    return [
        (family, module, replacement)
        for module in model.modules()
        for family, replacement, owner in owners
        if isinstance(module, owner) and _inherits(module, owner, replacement.attribute)
    ]


def _inherits(module: nn.Module, owner: type, attribute: str) -> bool:
    """Whether a subclass has left the method as it is."""
    return getattr(type(module), attribute) is vars(owner).get(attribute)
