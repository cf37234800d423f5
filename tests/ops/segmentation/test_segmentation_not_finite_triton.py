"""docs/not_finite.md: inference on every path; those of GPUs in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from helpers.strategies import assert_as_exact, tensors
from hypothesis import given, settings
from torch import Tensor

from mfkernels import (
    instance_segmentation,
    panoptic_segmentation,
    semantic_segmentation,
    use_backend,
)
from mfkernels.ops.segmentation import triton_launch as kernels

LOW, BAD, NONE = (4, 5), 2, -1e30
"""Of masks; the query with what is not finite; the logit of no mask."""
GEOMETRY = [((4, 5), (4, 5), (4, 5)), ((16, 20),) * 3, ((16, 20), (15, 18), (9, 11))]
"""The padded input, the image and the result."""
KINDS = [torch.nan, torch.inf, -torch.inf]
Size = tuple[int, int]
Sizes = tuple[Size, Size, Size]


def fine() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 5, 4), (1, 5, 6), (1, 6, *LOW))
    classes, embed, features = (2 * torch.randn(shape, generator=generator) for shape in shapes)
    return classes, embed, features


def logits_of(embed: Tensor, features: Tensor) -> Tensor:
    return torch.einsum("bqc,bchw->bqhw", embed, features)


def spoilt(what: str, value: float) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
    """Masks with the value in them, and the logits that they count as."""
    _, embed, features = fine()
    expected = logits_of(embed, features)
    if what == "embedding":
        embed[0, BAD, 3] = value
        expected[0, BAD] = NONE
    elif what == "features":
        features[0, 3, 1, 2] = value
        expected[0, :, 1, 2] = NONE
    else:
        logits = expected.clone()
        logits[0, BAD, 1, 2], logits[0, BAD, 1, 3] = value, -value
        known = torch.tensor([value, -value]).nan_to_num(NONE)
        expected[0, BAD, 1, 2:4] = known.clamp(NONE, -NONE)
        return (logits, None), expected
    return (embed, features), expected


def semantic(
    path: str, classes: Tensor, masks: tuple[Tensor, Tensor | None], sizes: Sizes, *options: bool
) -> tuple[Tensor, Tensor]:
    """Labels and scores; `options`: whether logits are resized, and scores asked for."""
    padded, image, size = sizes
    resize_logits, scores = options
    if path == "Triton":
        given = ([classes[0].softmax(1)[:, :-1]], [masks[0][0]])
        features = [] if masks[1] is None else [masks[1][0]]
        sides = [[side] for side in (*padded, *image)]
        return kernels.semantic_segmentation(*given, features, *sides, [False], *size, *options)
    with use_backend(path):
        named = {"input_size": padded, "image_sizes": [image], "resize_logits": resize_logits}
        found = semantic_segmentation(classes, *masks, size, return_scores=scores, **named)
    return (found[0][0], found[1][0]) if scores else (found[0], torch.empty(0))


# The interpreter is slow: one result of logits in two parts, and one of whole ones.
WAYS = [
    *(
        (path, sizes, resize_logits)
        for path in ("native", "reference")
        for sizes in GEOMETRY
        for resize_logits in (False, True)
    ),
    ("Triton", GEOMETRY[0], False),
    ("Triton", GEOMETRY[2], True),
]


@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize("what", ["logit", "embedding", "features"])
@pytest.mark.parametrize(("path", "sizes", "resize_logits"), WAYS, ids=str)
def test_semantic(path: str, what: str, value: float, sizes: Sizes, resize_logits: bool) -> None:
    masks, expected = spoilt(what, value)
    classes = fine()[0]
    _, scores = semantic(path, classes, masks, sizes, resize_logits, True)
    labels, _ = semantic(path, classes, masks, sizes, resize_logits, False)
    _, truth = semantic("reference", classes, (expected, None), sizes, resize_logits, True)
    torch.testing.assert_close(scores, truth, rtol=0, atol=5e-6)
    chosen = truth.gather(0, labels.reshape(1, *labels.shape[-2:]))[0]
    assert (truth.amax(0) - chosen <= 1e-5).all()


@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize("classes_count", [3, 32])
@pytest.mark.parametrize("path", ["native", "reference", "Triton"])
def test_class_logits_of_semantic_maps(path: str, classes_count: int, value: float) -> None:
    """As softmax and argmax have it: NaN everywhere, and class 0."""
    _, embed, features = fine()
    classes = torch.randn(1, 5, classes_count + 1)
    classes[0, BAD, 1] = value
    sizes: Sizes = ((8, 10),) * 3
    _, scores = semantic(path, classes, (embed, features), sizes, False, True)
    labels, _ = semantic(path, classes, (embed, features), sizes, False, False)
    assert bool(scores.isnan().all()) == (value != -torch.inf)
    assert bool(scores.isnan().any()) == (value != -torch.inf)
    if value != -torch.inf:
        assert not labels.any()


def owners(
    path: str, scores: Tensor, masks: tuple[Tensor, Tensor | None], sizes: Sizes, *options: bool
) -> tuple[Tensor, Tensor]:
    """The operator below panoptic inference, or the kernel of GPUs."""
    given = (masks[0][0], None if masks[1] is None else masks[1][0], *sizes[0], *sizes[1])
    kernel = kernels.panoptic_owners if path == "Triton" else torch.ops.mfkernels.panoptic_owners
    found: tuple[Tensor, Tensor] = kernel(scores, *given, *sizes[2], *options)
    return found


@pytest.mark.parametrize("paint", ["maskformer", "mask2former"])
@pytest.mark.parametrize("sizes", GEOMETRY)
@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize("what", ["logit", "embedding", "features", "class logit"])
def test_panoptic_and_instances(what: str, value: float, sizes: Sizes, paint: str) -> None:
    classes, embed, features = fine()
    masks, expected = spoilt(what, value)
    known = classes.clone()
    if what == "class logit":
        masks, expected = (embed, features), logits_of(embed, features)
        classes[0, BAD, 1] = value
        known[0, BAD] = known[0, BAD] if value == -torch.inf else torch.tensor([-1e4] * 3 + [0])
        known[0, BAD, 1] = -1e4
    padded, image, size = sizes
    named = {"input_size": padded, "image_sizes": [image]}
    options = {
        "thing_classes": {0},
        "object_mask_threshold": 0.3,
        "overlap_threshold": 0.3,
        "paint": paint,
    }
    with use_backend("reference"):
        truth = panoptic_segmentation(known, expected, None, size, **named, **options)[0]
    instances = instance_segmentation(known, expected, None, size, **named)[0]
    for path in ("native", "reference"):
        with use_backend(path):
            found = panoptic_segmentation(classes, *masks, size, **named, **options)[0]
            found_instances = instance_segmentation(classes, *masks, size, **named)[0]
        assert torch.equal(found[0], truth[0])
        assert [(x["id"], x["category_id"]) for x in found[1]] == [
            (x["id"], x["category_id"]) for x in truth[1]
        ]
        torch.testing.assert_close(found_instances.scores, instances.scores)
        assert found_instances.masks.sum() == instances.masks.sum()
    if what != "class logit":
        scores = known[0].softmax(1)[:, :-1].amax(1)
        ours, theirs = (
            owners(path, scores, masks, sizes, paint == "mask2former")
            for path in ("Triton", "native")
        )
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@given(tensors(1, 3, *LOW), tensors(1, 3, 4, with_unusual=False))
@settings(max_examples=60, deadline=None)
def test_magnitudes(logits: Tensor, classes: Tensor) -> None:
    """At the size of the logits, where no interpolation cancels what is large."""
    sizes: Sizes = (LOW, LOW, LOW)
    given = ((logits, None), sizes, False, True)
    plain, truth = (
        semantic("reference", x, (y, None), *given[1:])[1]
        for x, y in ((classes, logits), (classes.double(), logits.double()))
    )
    ours = semantic("native", classes, *given)[1]
    assert_as_exact(ours, plain, truth)
    labels, _ = semantic("native", classes, *given[:2], False, False)
    assert (truth.amax(0) - truth.gather(0, labels[None])[0] <= 1e-5).all()
    scores = classes[0].softmax(1)[:, :-1].amax(1)
    owner, _ = owners("native", scores, *given[:2], False)
    weighted = scores[:, None, None].double() * logits[0].double().nan_to_num(-1e4).sigmoid()
    chosen = weighted.gather(0, owner[None].long())[0]
    assert (weighted.amax(0) - chosen <= 1e-6).all()
