"""The methods that are replaced in `transformers`, and checks of the installed version."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mfkernels.integrations.transformers import (
    eomt_post_processing,
    instance_post_processing,
    losses,
    post_processing,
)
from mfkernels.integrations.transformers.binding import (
    Binding,
    Method,
    bind,
    bound,
    is_replacement,
    official,
    wrapped,
)

Feature = Literal["criterion", "matcher", "post_processing"]

SUPPORTED = ((5, 23), (6, 0))
"""The first supported version, and the first later version that is not supported."""


class RefusedError(RuntimeError):
    """The installed transformers is not one that the replacements were written for."""


@dataclass(frozen=True)
class Replacement:
    """One method of one class, and its replacement."""

    feature: Feature
    module: str
    owner: str
    attribute: str
    build: Callable[[Method], Method]

    def find(self, load: bool = True) -> type[Any] | None:
        """Return the class; None if its module is not loaded and `load` is False."""
        name = f"transformers.models.{self.module}"
        if not load and name not in sys.modules:
            return None
        try:
            return getattr(importlib.import_module(name), self.owner)
        except (ImportError, AttributeError) as error:
            raise RefusedError(
                f"transformers {_version()} has no {name}.{self.owner}: {error}"
            ) from error

    def bind(self) -> Binding:
        """Bind our method, which must have the same signature, to the class's unpatched method."""
        owner = self.find()
        current = vars(owner or object).get(self.attribute)
        if owner is None or not callable(current):
            raise RefusedError(
                f"transformers {_version()}: {self.owner} has no method {self.attribute}"
            )
        ours = filter(is_replacement, wrapped(current))
        found: Method = official(next(ours, current))
        expected = list(inspect.signature(self.build(found)).parameters)
        parameters = inspect.signature(found).parameters
        given = list(parameters)
        # A wrapper of other code may accept any arguments; it is not replaced.
        variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        takes_all = variadic <= {parameter.kind for parameter in parameters.values()}
        if given != expected and not takes_all:
            raise RefusedError(
                f"transformers {_version()}: {self.owner}.{self.attribute} takes "
                f"({', '.join(given)}), expected ({', '.join(expected)})"
            )
        return bind(owner, self.attribute, found, self.build)

    def bound(self) -> list[Binding]:
        """Return the bindings that `bind` made before."""
        # A class whose module is not loaded has never been bound.
        owner = self.find(load=False)
        return bound(owner, self.attribute) if owner is not None else []


@dataclass(frozen=True)
class Family:
    """The replacements of one model."""

    name: str
    replacements: tuple[Replacement, ...]
    make_criterion: Callable[[Any], nn.Module]
    """A small criterion from the modelling module."""


def _family(folder: str, prefix: str, *, dense: bool = False, processors: bool = True) -> Family:
    modelling = f"{folder}.modeling_{folder}"
    matcher = losses.dense_matcher if dense else losses.point_matcher
    replacements = [
        Replacement("matcher", modelling, f"{prefix}HungarianMatcher", "forward", matcher),
        Replacement(
            "criterion",
            modelling,
            f"{prefix}Loss",
            "loss_masks",
            losses.dense_losses if dense else losses.point_losses,
        ),
    ]
    if dense:
        replacements.append(
            Replacement("criterion", modelling, f"{prefix}Loss", "forward", losses.dense_criterion)
        )
    for middle, ending in (("", ""), ("pil_", "Pil")) if processors else ():
        module = f"{folder}.image_processing_{middle}{folder}"
        owner = f"{prefix}ImageProcessor{ending}"
        for kind, build in _maps(folder, pil=bool(ending)).items():
            attribute = f"post_process_{kind}_segmentation"
            replacements.append(Replacement("post_processing", module, owner, attribute, build))
    return Family(folder, tuple(replacements), functools.partial(_small_criterion, prefix=prefix))


def _maps(folder: str, pil: bool) -> dict[str, Callable[[Method], Method]]:
    """Return the replacements of the post-processing for each kind of map."""
    if folder == "eomt":
        return {
            "semantic": eomt_post_processing.semantic,
            "panoptic": eomt_post_processing.panoptic,
            "instance": eomt_post_processing.instance,
        }
    first_size = (384, 384) if folder == "mask2former" else None
    semantic = panoptic = post_processing.interpolate
    instance = instance_post_processing.instance(first_size)
    if folder == "oneformer":
        panoptic = post_processing.torchvision_resize
        semantic = semantic if pil else panoptic
        instance = instance_post_processing.oneformer_instance
    return {
        "semantic": post_processing.semantic(semantic),
        "panoptic": post_processing.panoptic(panoptic, first_size),
        "instance": instance,
    }


def _small_criterion(module: Any, prefix: str) -> nn.Module:
    matcher = getattr(module, f"{prefix}HungarianMatcher")
    criterion = getattr(module, f"{prefix}Loss")
    if prefix == "MaskFormer":
        return criterion(4, matcher(1.0, 20.0, 1.0), {}, 0.1)
    if prefix == "OneFormer":
        return criterion(4, matcher(2.0, 5.0, 5.0, 12), {}, 0.1, 12, 3.0, 0.75)
    config = SimpleNamespace(
        num_labels=4,
        no_object_weight=0.1,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        train_num_points=12,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    return criterion(config, {})


FAMILIES = (
    _family("maskformer", "MaskFormer", dense=True),
    _family("mask2former", "Mask2Former"),
    _family("oneformer", "OneFormer"),
    _family("eomt", "Eomt"),
    _family("eomt_dinov3", "EomtDinov3", processors=False),
)


def _version() -> str:
    version: str = importlib.import_module("transformers").__version__
    return version


def check_version() -> None:
    """Raise RefusedError unless the installed version is supported."""
    first, end = SUPPORTED
    version = _version()
    major, minor = version.split(".")[:2]
    if not first <= (int(major), int(minor)) < end:
        raise RefusedError(
            f"mfkernels.integrations.transformers supports transformers >={_dotted(first)},"
            f"<{_dotted(end)}; {version} is installed"
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def chosen(features: frozenset[str]) -> Iterator[tuple[Family, Replacement]]:
    for family in FAMILIES:
        for replacement in family.replacements:
            if replacement.feature in features:
                yield family, replacement


@functools.cache
def check_family(family: Family, features: frozenset[str]) -> None:
    """Raise RefusedError if the replacements do not compute what the installed classes compute.

    Both solve a small problem, so that a version with the same signatures but other losses is
    refused too. The random numbers of the process are not touched.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            if features - {"post_processing"}:
                _compare_losses(family)
            if "post_processing" in features:
                _compare_maps(family)
    except RefusedError:
        raise
    except Exception as error:
        raise _refusal(family, f"{type(error).__name__}: {error}") from error
    finally:
        torch.set_default_dtype(dtype)


def _refusal(family: Family, reason: str) -> RefusedError:
    return RefusedError(
        f"{family.name} of transformers {_version()} differs from what mfkernels replaces: {reason}"
    )


class _RandomNumbers(TorchFunctionMode):
    """Draw seeded random numbers in this thread without changing the generator of the process."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            kwargs = {"generator": self.generator, **kwargs}
        return func(*args, **kwargs)


def _compare_losses(family: Family) -> None:
    replacements = [
        replacement
        for replacement in family.replacements
        if replacement.feature != "post_processing"
    ]
    criterion = family.make_criterion(
        importlib.import_module(f"transformers.models.{replacements[0].module}")
    )
    # Avoid the collective operation of `get_num_masks`: only this process runs the check.
    vars(criterion)["get_num_masks"] = lambda class_labels, device: torch.full((), 3.0)
    with _RandomNumbers(0):
        masks = [torch.rand(count, 16, 20).gt(0.6).float() for count in (2, 1)]
        mask_logits, class_logits = 3 * torch.randn(2, 5, 4, 5), 2 * torch.randn(2, 5, 5)
    labels = [torch.tensor([3, 0]), torch.tensor([2])]
    names = list(inspect.signature(criterion.forward).parameters)
    arguments = dict.fromkeys(names)
    arguments |= {
        "masks_queries_logits": mask_logits,
        "class_queries_logits": class_logits,
        "mask_labels": masks,
        "class_labels": labels,
    }
    if "calculate_contrastive_loss" in names:
        arguments["calculate_contrastive_loss"] = False
    results: list[dict[str, Tensor]] = []
    for ours in (False, True):
        for replacement in replacements:
            module: Any = criterion.matcher if replacement.feature == "matcher" else criterion
            binding = replacement.bind()
            vars(module)[binding.attribute] = MethodType(binding.original, module)
            if ours:
                binding.patch_instance(module)
        with torch.no_grad(), _RandomNumbers(1):
            results.append(criterion(**arguments))
    theirs, ours_ = results
    if list(theirs) != list(ours_):
        raise _refusal(family, f"its losses are {list(theirs)}, expected {list(ours_)}")
    for name, loss in theirs.items():
        if not torch.allclose(loss, ours_[name], rtol=1e-3, atol=1e-5):
            raise _refusal(
                family, f"its {name} of a test problem is {loss}, expected {ours_[name]}"
            )


def _compare_maps(family: Family) -> None:
    with _RandomNumbers(0):
        outputs = SimpleNamespace(
            class_queries_logits=3 * torch.randn(1, 6, 5),
            masks_queries_logits=3 * torch.randn(1, 6, 4, 5),
            patch_offsets=None,
        )
    options = {
        "threshold": 0.3,
        "overlap_mask_area_threshold": 0.1,
        "label_ids_to_fuse": {0},
        "stuff_classes": [0],
        "size": {"shortest_edge": 8, "longest_edge": 8},
    }
    for replacement in family.replacements:
        if replacement.feature != "post_processing":
            continue
        processor: Any = object.__new__(replacement.find() or object)
        processor.class_info_file = ""
        original = replacement.bind().original
        names = inspect.signature(original).parameters
        given = {name: value for name, value in options.items() if name in names}
        theirs, ours = (
            method(processor, outputs, target_sizes=[(9, 3)], **given)[0]
            for method in (original, replacement.build(original))
        )
        if not _same_map(theirs, ours):
            raise _refusal(family, f"{replacement.owner}.{replacement.attribute} gives another map")


def _same_map(theirs: Any, ours: Any) -> bool:
    """Whether labels or segments are the same; scores may differ in their rounding."""
    if isinstance(theirs, Tensor):
        return torch.equal(theirs, ours)
    theirs_, ours_ = theirs["segments_info"], ours["segments_info"]
    return (
        torch.equal(theirs["segmentation"], ours["segmentation"])
        and len(theirs_) == len(ours_)
        and all(
            {**one, "score": 0} == {**other, "score": 0}
            and abs(one["score"] - other["score"]) < 1e-5
            for one, other in zip(theirs_, ours_, strict=True)
        )
    )
