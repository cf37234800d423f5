"""Triton kernels of segmentation in the interpreter, against the oracle in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mfkernels.ops.segmentation import triton_launch as kernels
from mfkernels.ops.segmentation.reference import crop, resize, semantic_scores
from mfkernels.triton import devices

Size = tuple[int, int]


@dataclass(frozen=True)
class View:
    """One image as the network saw it; `image` lies in the upper left of `padded`."""

    queries: int = 5
    low: Size = (4, 5)
    padded: Size = (16, 20)
    image: Size = (16, 20)
    flipped: bool = False
    seed: int = 0

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Of the padded input and of the image."""
        return *self.padded, *self.image

    def inputs(self, classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits, mask embeddings, pixel features."""
        generator = torch.Generator().manual_seed(self.seed)
        class_logits = 2 * torch.randn(self.queries, classes + 1, generator=generator)
        embed = torch.randn(self.queries, 20, generator=generator)
        return class_logits, embed, torch.randn(20, *self.low, generator=generator)


def one_view(size: Size) -> tuple[list[Any], ...]:
    """The sides of the padded input and of an image that fills it; not mirrored."""
    height, width = size
    return [height], [width], [height], [width], [False]


def average_scores(views: list[View], classes: int, size: Size, resize_logits: bool) -> Tensor:
    total = torch.zeros(classes, *size, dtype=torch.float64)
    for view in views:
        class_logits, embed, features = (x.double() for x in view.inputs(classes))
        scores = semantic_scores(
            class_logits,
            torch.einsum("qc,chw->qhw", embed, features),
            input_size=view.padded,
            image_size=view.image,
            size=size,
            resize_logits=resize_logits,
        )
        total += (scores.flip(2) if view.flipped else scores) / len(views)
    return total


def semantic(
    views: list[View], classes: int, size: Size, *options: bool, dense: bool = False
) -> tuple[Tensor, Tensor]:
    inputs = [view.inputs(classes) for view in views]
    probability = [x.softmax(1)[:, :-1] / len(views) for x, _, _ in inputs]
    embed, features = [x for _, x, _ in inputs], [x for _, _, x in inputs]
    if dense:
        embed = [torch.einsum("qc,chw->qhw", e, f) for e, f in zip(embed, features, strict=True)]
        features = []
    sides = (list(side) for side in zip(*(view.sides for view in views), strict=True))
    flipped = [view.flipped for view in views]
    return kernels.semantic_segmentation(
        probability, embed, features, *sides, flipped, *size, *options
    )


def assert_best(labels: Tensor, scores: Tensor) -> None:
    """The label of each pixel has the best score, or one less than 1e-6 below it."""
    assert labels.dtype == torch.int64
    found = scores.gather(0, labels[None])[0]
    assert (found >= scores.amax(0) - 1e-6).all()


SEMANTIC_CASES: list[tuple[list[View], int, Size]] = [
    ([View()], 4, (16, 20)),
    ([View(queries=1, low=(1, 1), padded=(1, 1), image=(1, 1))], 1, (1, 1)),
    ([View(queries=40, low=(3, 7), padded=(12, 25), image=(9, 21), seed=1)], 20, (13, 10)),
    ([View(low=(9, 8), padded=(5, 6), image=(4, 6), flipped=True, seed=2)], 3, (7, 11)),
    ([View(100, (3, 5), (9, 15), (9, 14), seed=6)], 35, (9, 14)),
    ([View(130, (4, 5), (16, 20), (14, 18), seed=7)], 3, (14, 18)),
    ([View(20, (5, 6), (20, 24), (20, 24), True, 8)], 70, (11, 13)),
    ([View(20, seed=9), View(3, (5, 3), (10, 6), (9, 6), True, 10)], 150, (9, 10)),
    ([View(20, seed=11), View(30, seed=12)], 100, (9, 12)),
    ([View(seed=3), View(3, (5, 3), (10, 6), (9, 6), True, 4), View(33, seed=5)], 6, (16, 20)),
]
"""Padding, cropping, up- and downsampling, one class and query, several chunks and views.

Also weights that half precision rounds, more queries than are handled at once, and patches of each
size, and larger blocks of classes, where sigmoids are not kept.
"""


@pytest.mark.parametrize("resize_logits", [False, True])
@pytest.mark.parametrize(("views", "classes", "size"), SEMANTIC_CASES)
def test_semantic(views: list[View], classes: int, size: Size, resize_logits: bool) -> None:
    truth = average_scores(views, classes, size, resize_logits)
    labels, scores = semantic(views, classes, size, resize_logits, True)
    torch.testing.assert_close(scores.double(), truth, rtol=1e-6, atol=1e-6)
    assert_best(labels, truth)
    guessed, none = semantic(views, classes, size, resize_logits, False)
    assert_best(guessed, truth)
    assert none.shape == (0,)
    assert torch.equal(guessed, semantic(views, classes, size, resize_logits, False, dense=True)[0])


@pytest.mark.parametrize("architecture", ["sm_75", "sm_86"])
@pytest.mark.parametrize("case", [3, 4, 9])
def test_semantic_in_the_form_of_other_gpus(
    case: int, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small pieces of the queries, and small blocks of classes."""
    monkeypatch.setattr(devices, "assumed", devices.KNOWN[architecture])
    views, classes, size = SEMANTIC_CASES[case]
    truth = average_scores(views, classes, size, False)
    labels, scores = semantic(views, classes, size, False, True)
    torch.testing.assert_close(scores.double(), truth, rtol=1e-6, atol=1e-6)
    assert_best(labels, truth)
    assert_best(semantic(views, classes, size, False, False)[0], truth)


def recorded_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, dict[str, Any]]:
    """The arguments of the latest launch of each kernel, by its name."""
    launches: dict[str, dict[str, Any]] = {}
    original = kernels.launcher.launch

    def launch(kernel: Any, grid: Any, **arguments: Any) -> None:
        original(kernel, grid, **arguments)
        launches[kernel.fn.__name__] = arguments

    monkeypatch.setattr(kernels.launcher, "launch", launch)
    return launches


def sure_model(classes: int, low: Size) -> tuple[Tensor, Tensor]:
    """`[100, classes]` and mask logits of 100 queries: a few matter, each with a stripe."""
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(100, classes + 1, generator=generator)
    class_logits[:, -1] += 9
    sure = torch.randperm(100, generator=generator)[:classes]
    class_logits[sure] = 9 * torch.eye(classes, classes + 1)
    logits = torch.randn(100, *low, generator=generator)
    stripes = torch.eye(classes).repeat_interleave(low[1] // classes, 1)
    logits[sure] = 12 * stripes[:, None] - 6
    return class_logits.softmax(1)[:, :-1], logits


@pytest.mark.parametrize(
    ("low", "sides", "size", "mirrored"),
    [
        # Tiles begin half a mask pixel before the image; the result is the input.
        ((6, 48), (24, 192, 24, 192), (24, 192), False),
        ((6, 48), (24, 192, 22, 180), (22, 180), True),
        # Resized from a part of the input.
        ((6, 48), (24, 192, 20, 180), (33, 260), True),
        # Hardly larger than the mask.
        ((6, 300), (7, 301, 7, 301), (7, 301), False),
    ],
)
def test_tiles_of_one_certain_class(
    low: Size,
    sides: tuple[int, int, int, int],
    size: Size,
    mirrored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes = 6
    probability, logits = sure_model(classes, low)
    launches = recorded_launches(monkeypatch)
    given = ([probability], [logits], [], *([side] for side in sides), [mirrored], *size, False)
    labels, _ = kernels.semantic_segmentation(*given, False)
    padded, image = sides[:2], sides[2:]
    masks = resize(crop(resize(logits.double(), padded).sigmoid(), image), size)
    truth = torch.einsum("qk,qhw->khw", probability.double(), masks.flip(2) if mirrored else masks)
    assert_best(labels, truth)

    certain, tile = launches["certain_kernel"]["certain_ptr"], launches["semantic_kernel"]["TILE"]
    rows = (torch.arange(size[0]) + tile.up) // tile.height
    columns = (torch.arange(size[1]) + tile.left) // tile.width
    across = int(columns[-1]) + 1
    assert len(certain) == (int(rows[-1]) + 1) * across
    claimed = certain[rows[:, None] * across + columns]
    assert_best(claimed.long().where(claimed >= 0, labels), truth)
    assert 0.1 < (claimed >= 0).float().mean() < 0.9
    assert len(certain.unique()) == classes + 1


def test_what_is_certain_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    probability, logits = sure_model(6, (2, 24))
    original = kernels.launcher.launch

    def launch(kernel: Any, grid: Any, **arguments: Any) -> None:
        original(kernel, grid, **arguments)
        if kernel is kernels.certain_kernel:
            arguments["certain_ptr"].fill_(5)

    monkeypatch.setattr(kernels.launcher, "launch", launch)
    given = ([probability], [logits], [], *one_view((8, 96)), 8, 96, False, False)
    assert (kernels.semantic_segmentation(*given)[0] == 5).all()


def test_near_ties_are_not_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere the same score, and one that is 0.0003 larger."""
    launches = recorded_launches(monkeypatch)
    for lead, known in ((3e-4, False), (3e-3, True)):
        probability = torch.tensor([[0.4, 0.4 + lead / 2], [0.4 + lead / 2, 0.4]])
        probability[:, 1] += lead / 2
        logits = torch.full((2, 2, 2), 20.0)
        given = ([probability], [logits], [], *one_view((8, 8)), 8, 8, False, False)
        assert (kernels.semantic_segmentation(*given)[0] == 1).all()
        assert (launches["certain_kernel"]["certain_ptr"] >= 0).all() == known


def test_semantic_of_near_ties_is_computed_in_full() -> None:
    """The sums of the classes as 1024ths: 614.76 and 614.97, but 615 and 614.75 when rounded."""
    probability = torch.tensor([[307.38, 307.37], [307.38, 307.60]]) / 1024
    labels, _ = kernels.semantic_segmentation(
        [probability], [torch.zeros(2, 2, 2)], [], *one_view((8, 8)), 8, 8, False, False
    )
    assert (labels == 1).all()


def test_the_first_of_equal_classes_wins() -> None:
    probability = torch.tensor([[0.1, 0.4, 0.4], [0.2, 0.3, 0.3]]).repeat(1, 100)
    given = ([probability], [torch.zeros(2, 2, 2)], [], *one_view((8, 8)), 8, 8, False)
    assert kernels.semantic_segmentation(*given, False)[0].unique().tolist() == [1]
    assert kernels.semantic_segmentation(*given, True)[0].unique().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    class_logits, embed, features = (x.to(dtype) for x in View().inputs(4))
    probability = class_logits.float().softmax(1)[:, :-1]
    given = (*one_view((16, 20)), 16, 20, False, True)
    wide = kernels.semantic_segmentation(
        [probability], [embed.float()], [features.float()], *given
    )[1]
    strided = features.to(memory_format=torch.preserve_format).transpose(1, 2).contiguous()
    ours = kernels.semantic_segmentation([probability], [embed], [strided.transpose(1, 2)], *given)[
        1
    ]
    torch.testing.assert_close(ours, wide, rtol=0, atol=2e-6)


def test_logits_that_are_not_numbers_give_some_label() -> None:
    class_logits, embed, features = View().inputs(4)
    for bad in (torch.nan, torch.inf, -torch.inf):
        probability, broken = class_logits.softmax(1)[:, :-1], features.clone()
        probability[2, 1] = bad
        broken[0, 1, 2] = bad
        labels, _ = kernels.semantic_segmentation(
            [probability], [embed], [broken], *one_view((16, 20)), 16, 20, False, False
        )
        assert ((labels >= 0) & (labels < 4)).all()


def owners_by_hand(scores: Tensor, masks: Tensor, confident_only: bool) -> tuple[Tensor, Tensor]:
    """Owner map and counts from masks `[Q, H, W]` after the sigmoid."""
    kept = scores >= 0
    counts = torch.zeros(len(scores), 3, dtype=torch.int64)
    if not kept.any():
        return torch.full(masks.shape[1:], -1, dtype=torch.int32), counts
    owner = torch.where(kept[:, None, None], scores[:, None, None] * masks, -1).argmax(0)
    confident = masks >= 0.5
    sure = confident.gather(0, owner[None])[0]
    for query in range(len(scores)):
        owned = owner == query
        painted = owned & sure if confident_only else owned
        if kept[query]:
            counts[query] = torch.stack([owned.sum(), confident[query].sum(), painted.sum()])
    return (owner.where(sure, -1) if confident_only else owner).int(), counts


@pytest.mark.parametrize("confident_only", [False, True])
@pytest.mark.parametrize(
    ("view", "size"),
    [
        (View(), (16, 20)),
        (View(1, (1, 1), (1, 1), (1, 1)), (1, 1)),
        (View(70, (3, 7), (12, 25), (9, 21), seed=1), (13, 10)),
    ],
)
def test_panoptic_owners(view: View, size: Size, confident_only: bool) -> None:
    _, embed, features = view.inputs(1)
    generator = torch.Generator().manual_seed(9)
    scores = torch.rand(view.queries, generator=generator)
    scores[1:] = scores[1:].where(scores[1:] > 0.3, -1)
    logits = torch.einsum("qc,chw->qhw", embed, features)
    masks = resize(crop(resize(logits.double(), view.padded), view.image), size).sigmoid()
    owners, counts = owners_by_hand(scores.double(), masks, confident_only)
    for pair in ((embed, features), (logits, None)):
        ours = kernels.panoptic_owners(scores, *pair, *view.sides, *size, confident_only)
        assert [part.dtype for part in ours] == [torch.int32, torch.int64]
        assert torch.equal(ours[0], owners)
        assert torch.equal(ours[1], counts)


@pytest.mark.parametrize("confident_only", [False, True])
def test_panoptic_owners_without_kept_queries_and_of_ties(confident_only: bool) -> None:
    logits, sides = torch.zeros(40, 2, 2), (4, 4, 4, 4, 4, 4)
    none = torch.full((40,), -1.0)
    owners, counts = kernels.panoptic_owners(none, logits, None, *sides, confident_only)
    assert (owners == -1).all()
    assert (counts == 0).all()
    scores = none.index_fill(0, torch.tensor([3, 7, 39]), 0.5)
    owners, counts = kernels.panoptic_owners(scores, logits, None, *sides, confident_only)
    assert (owners == 3).all()
    assert counts[3].tolist() == [16, 16, 16]
    assert counts[39].tolist() == [0, 16, 0]


def test_a_mask_that_is_not_a_number_is_nowhere() -> None:
    """It owns what nobody else wants, where it is not at least 0.5: no segment comes of that."""
    logits = torch.zeros(3, 2, 2)
    logits[1] = torch.nan
    given = (None, 4, 4, 4, 4, 4, 4, False)
    owners, counts = kernels.panoptic_owners(torch.tensor([0.1, 0.9, 0.5]), logits, *given)
    assert (owners == 2).all()
    assert counts.tolist() == [[0, 16, 0], [0, 0, 0], [16, 16, 16]]
    owners, counts = kernels.panoptic_owners(torch.tensor([-1.0, 0.9, -1.0]), logits, *given)
    assert (owners == 1).all()
    assert counts.tolist() == [[0, 0, 0], [16, 0, 16], [0, 0, 0]]


def test_float64_is_refused() -> None:
    _, embed, features = (x.double() for x in View().inputs(2))
    with pytest.raises(TypeError, match="panoptic_owners on a GPU takes float32, bfloat16 and"):
        kernels.panoptic_owners(torch.ones(5), embed, features, 4, 4, 4, 4, 4, 4, False)
    with pytest.raises(TypeError, match="semantic_segmentation on a GPU takes float32"):
        kernels.semantic_segmentation(
            [torch.ones(5, 2)], [embed], [features], *one_view((4, 4)), 4, 4, False, False
        )
