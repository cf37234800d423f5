"""The problems that are checked: each operation in each of its forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mfkernels.criterion import MaskFormerCriterion
from mfkernels.ops.assignment import batch_linear_assignment
from mfkernels.ops.class_loss import class_loss
from mfkernels.ops.common.maps import CHANNELS
from mfkernels.ops.conv3x3 import conv3x3
from mfkernels.ops.focal_dice import focal_dice_loss, point_loss, sigmoid_focal_loss
from mfkernels.ops.group_norm import group_norm
from mfkernels.ops.loss_sums import loss_sums
from mfkernels.ops.mask_logits import mask_logits
from mfkernels.ops.mask_loss import mask_loss
from mfkernels.ops.matching_cost import matching_cost
from mfkernels.ops.sample_points import sample_points
from mfkernels.ops.segmentation import panoptic_segmentation, semantic_segmentation
from mfkernels.ops.window_attention import window_attention
from mfkernels.selfcheck.inputs import Sizes, matches, predictions, segments
from mfkernels.targets import SegmentTargets

Function = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Problem:
    """A call of an operation."""

    operation: str
    form: str
    function: Function
    """Computes a list of results from `inputs`. Floating-point results are compared with float64,
    others pixel by pixel."""
    inputs: list[Tensor] = field(repr=False)
    gradient: bool = False
    """Whether to check the gradients with respect to the inputs."""
    waits: bool = False
    """Whether the host waits for a result, so that the call cannot be captured in a CUDA graph."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """Return the problem with its inputs on another device and in another dtype."""
        return replace(self, inputs=[x.to(device, dtype) for x in self.inputs])


def problems(device: torch.device, sizes: Sizes) -> Iterator[Problem]:
    """Yield all operations in all forms.

    Inputs are float32 on the CPU. Segments and assignments, which are not differentiated, are
    already on `device`.
    """
    generator = torch.Generator().manual_seed(0)
    yield from _assignment(generator, device)
    class_logits, embed, features = predictions(sizes, generator)
    logits = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    found = matches(sizes, generator).to(device)
    for name, overlap in (("label map", False), ("masks", True)):
        targets = segments(sizes, generator, overlap=overlap).to(device)
        last = features.to(memory_format=torch.channels_last)
        forms = {
            "factors": [embed, features],
            "factors, channels last": [embed, last],
            "logits": [logits],
        }
        for masks, inputs in forms.items():
            form = f"{name}, {masks}"
            cost = _matching_cost(targets)
            yield Problem("matching_cost", form, cost, [class_logits, *inputs])
            yield Problem("mask_loss", form, _mask_loss(targets, found), inputs, gradient=True)
        if not overlap:
            losses = _class_loss(targets, found)
            yield Problem("class_loss", "matches", losses, [class_logits], gradient=True)
            shapes = (found.shape, found.shape, found.shape[:1])
            sums = [torch.rand(shape, generator=generator) for shape in shapes]
            yield Problem("loss_sums", "layers", _loss_sums, sums, gradient=True)
        criterion = _criterion(targets, sizes.classes)
        everything = [class_logits, embed, features]
        yield Problem("criterion", name, criterion, everything, gradient=True)
    yield from _losses_of_logits(generator, sizes, device)
    yield Problem("mask_logits", "factors", lambda a, b: [mask_logits(a, b)], [embed, features])
    maps, weight = _convolution(generator, sizes)
    convolution: Function = lambda x, w: [conv3x3(x, w)]  # noqa: E731
    # On other devices, PyTorch computes it, and its gradients need not be deterministic.
    ours = device.type == "cpu"
    yield Problem("conv3x3", "maps", convolution, [maps, weight], gradient=ours)
    weight, bias = torch.randn(2, maps.shape[1], generator=generator)
    norm: Function = lambda x, w, b: [group_norm(x, 4, w, b, relu=True)]  # noqa: E731
    last = maps.to(memory_format=torch.channels_last)
    yield Problem("group_norm", "channels last", norm, [last, weight, bias], gradient=ours)
    yield replace(_window_attention(generator, sizes), gradient=ours)
    yield from _inference([class_logits[-1], embed[-1], features], sizes)


def _assignment(generator: torch.Generator, device: torch.device) -> Iterator[Problem]:
    counts = torch.tensor([20, 0, 7, 1], device=device)

    def cost_of_matches(cost: Tensor, row_counts: Tensor | None = None) -> list[Tensor]:
        """Return the total cost: the assignment itself may differ if costs are equal."""
        columns = batch_linear_assignment(cost, row_counts)
        chosen = cost.double().gather(-1, columns.clamp(min=0)[..., None])[..., 0]
        return [chosen.where(columns >= 0, 0).sum(-1)]

    costs = torch.rand(4, 20, 100, generator=generator)
    ties = torch.randint(0, 4, (3, 30, 30), generator=generator).float()
    yield Problem("assignment", "20 x 100", cost_of_matches, [costs])
    yield Problem("assignment", "ragged", lambda x: cost_of_matches(x, counts), [costs])
    yield Problem("assignment", "100 x 20", cost_of_matches, [costs.mT.contiguous()])
    yield Problem("assignment", "ties", cost_of_matches, [ties])


def _matching_cost(targets: SegmentTargets) -> Function:
    def function(
        class_logits: Tensor, embed: Tensor, features: Tensor | None = None
    ) -> list[Tensor]:
        return [matching_cost(class_logits, embed, features, targets)]

    return function


def _mask_loss(targets: SegmentTargets, found: Tensor) -> Function:
    def function(embed: Tensor, features: Tensor | None = None) -> list[Tensor]:
        return list(mask_loss(embed, features, targets, found))

    return function


def _class_loss(targets: SegmentTargets, found: Tensor) -> Function:
    def function(class_logits: Tensor) -> list[Tensor]:
        return list(class_loss(class_logits, targets, found, 0.1))

    return function


def _loss_sums(focal: Tensor, dice: Tensor, class_loss: Tensor) -> list[Tensor]:
    class_weight = torch.full_like(class_loss, 3.0)
    return [loss_sums(focal, dice, class_loss, class_weight, 7.0, (1.0, 20.0, 1.0))[0]]


def _criterion(targets: SegmentTargets, classes: int) -> Function:
    criterion = MaskFormerCriterion(classes).to(targets.labels.device)

    def function(class_logits: Tensor, embed: Tensor, features: Tensor) -> list[Tensor]:
        names = ("class_logits", "mask_embed", "pixel_features")
        outputs = dict(zip(names, (class_logits, embed, features), strict=True))
        return [torch.stack(list(criterion(outputs, targets).values()))]

    return function


def _losses_of_logits(
    generator: torch.Generator, sizes: Sizes, device: torch.device
) -> Iterator[Problem]:
    height, width = sizes.size
    logits = 3 * torch.randn(5, height * width, generator=generator)
    soft = torch.rand(logits.shape, generator=generator).to(device)
    for form, targets in (("hard", soft > 0.7), ("soft", soft)):
        losses = _focal_dice(targets)
        yield Problem("focal_dice", form, losses, [logits], gradient=True)
    points = torch.rand(5, 50, 2, generator=generator).to(device)
    images = logits.reshape(5, height, width)
    masks = (soft > 0.7).reshape(images.shape)

    def at_points(function: Callable[[Tensor, Tensor], list[Tensor]]) -> Function:
        # In float64 for the truth: positions are rounded to the dtype of the points.
        return lambda x: function(x, points.to(torch.promote_types(points.dtype, x.dtype)))

    loss = at_points(lambda x, at: list(point_loss(x, masks, at)))
    yield Problem("point_loss", "bool", loss, [images], gradient=True)
    values = at_points(lambda x, at: [sample_points(x, at)])
    yield Problem("sample_points", "images", values, [images])


def _focal_dice(targets: Tensor) -> Function:
    def function(logits: Tensor) -> list[Tensor]:
        focal_losses = sigmoid_focal_loss(logits, targets.to(logits.dtype))
        return [*focal_dice_loss(logits, targets), focal_losses]

    return function


def _convolution(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Maps and weights, with the channels of the features rounded up to a supported number."""
    channels = -(-sizes.channels // CHANNELS) * CHANNELS
    maps = torch.randn(sizes.images, channels, *sizes.low, generator=generator)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    return maps, weight / (9 * channels) ** 0.5


def _window_attention(generator: torch.Generator, sizes: Sizes) -> Problem:
    """Two heads in shifted windows of 7 x 7, on maps that they do not divide in general."""
    shapes = ((sizes.images, *sizes.low, 3, 2, 32), (3, 2, 32), (2, 49, 49))
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]

    def function(qkv: Tensor, padding: Tensor, bias: Tensor) -> list[Tensor]:
        return [window_attention(qkv, bias, (7, 7), (3, 3), padding)]

    return Problem("window_attention", "shifted", function, inputs)


def _inference(inputs: list[Tensor], sizes: Sizes) -> Iterator[Problem]:
    height, width = sizes.size
    image = (height - height // 9, width - width // 7)
    shape: dict[str, Any] = {"input_size": sizes.size, "image_sizes": [image] * sizes.images}

    def semantic(*given: Tensor, resize_logits: bool = False) -> list[Tensor]:
        """Return the scores, and by how much the label of the call without scores misses the best
        score."""
        options: dict[str, Any] = {"resize_logits": resize_logits, **shape}
        labels: Any = semantic_segmentation(given[0], given[1], given[2], image, **options)
        _, scores = semantic_segmentation(
            given[0], given[1], given[2], image, return_scores=True, **options
        )
        assert isinstance(scores, Tensor)
        return [scores, scores.amax(1) - scores.gather(1, labels[:, None])[:, 0]]

    def panoptic(class_logits: Tensor, embed: Tensor, features: Tensor) -> list[Tensor]:
        found = panoptic_segmentation(
            class_logits,
            embed,
            features,
            image,
            thing_classes=range(sizes.classes // 2),
            object_mask_threshold=0.1,
            overlap_threshold=0.3,
            **shape,
        )
        return [torch.stack([segmentation for segmentation, _ in found])]

    yield Problem("semantic_segmentation", "scores resized", semantic, inputs)
    resized: Function = lambda *given: semantic(*given, resize_logits=True)  # noqa: E731
    yield Problem("semantic_segmentation", "logits resized", resized, inputs)
    yield Problem("panoptic_owners", "paper", panoptic, inputs, waits=True)
