"""Patched post-processing of EoMT, and of instances, against transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from torch.nn import functional as F

from mfkernels.integrations.transformers import (
    binding,
    eomt_post_processing,
    patch,
    patching,
    post_processing,
    unpatch,
)

INSTANCES = {
    each.owner: each
    for _, each in patching.chosen(frozenset(["post_processing"]))
    if "instance" in each.attribute
}
EOMT = [owner for owner in INSTANCES if owner.startswith("Eomt")]
MASKFORMER = [owner for owner in INSTANCES if "Mask" in owner]
ONEFORMER = [owner for owner in INSTANCES if owner.startswith("OneFormer")]
# PyTorch resizes maps with at most 128 rows and columns in all in another way, with a rounding that
# depends on the number of maps.
SIZES = [(73, 91), (90, 60)]
SIZE = {"shortest_edge": 80, "longest_edge": 80}
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(post_processing, "PIXELS_AT_ONCE", 4 * 73 * 91)
    yield
    unpatch()


def processor(owner: str, **attributes: Any) -> Any:
    made: Any = object.__new__(INSTANCES[owner].find() or object)
    vars(made).update(attributes)
    return made


def outputs(images: int = 2, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """Queries with round masks, and queries of noise."""
    generator = torch.Generator().manual_seed(3)
    across = torch.linspace(0, 1, 12)
    x, y, radius = torch.rand(3, images, 6, 1, 1, generator=generator)
    away = ((across - x).square() + (across[:, None] - y).square()).sqrt()
    noise = 3 * torch.randn(images, 5, 12, 12, generator=generator)
    masks = torch.cat((40 * (0.5 * radius - away), noise), 1)
    classes = 4 * torch.randn(images, 11, 8, generator=generator)
    return SimpleNamespace(
        masks_queries_logits=masks.to(dtype),
        class_queries_logits=classes.to(dtype).requires_grad_(),
        patch_offsets=None,
    )


def same(theirs: Any, ours: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif hasattr(theirs, "items"):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            same(value, ours[name])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(theirs, ours, strict=True):
            same(one, other)
    else:
        assert ours == theirs


def compare(made: Any, kind: str, *args: Any, **kwargs: Any) -> Any:
    method = f"post_process_{kind}_segmentation"
    theirs = getattr(made, method)(*args, **kwargs)
    patch()
    assert binding.is_replacement(getattr(made, method))
    same(theirs, getattr(made, method)(*args, **kwargs))
    unpatch()
    assert not binding.is_replacement(getattr(made, method))
    return theirs


@pytest.mark.parametrize("owner", EOMT)
class TestEomt:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scores", [False, True])
    def test_semantic(self, owner: str, dtype: torch.dtype, scores: bool) -> None:
        made = processor(owner, size=SIZE)
        compare(made, "semantic", outputs(dtype=dtype), SIZES, None, scores)
        compare(made, "semantic", outputs(dtype=dtype), SIZES, {**SIZE, "longest_edge": None})

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_semantic_of_crops(self, owner: str, dtype: torch.dtype) -> None:
        given = outputs(images=5, dtype=dtype)
        # 80 x 99 and 120 x 80 at the size of the crops, which overlap; not in the images' order.
        given.patch_offsets = [(1, 0, 80), (0, 0, 80), (1, 20, 100), (0, 19, 99), (1, 40, 120)]
        size = {"shortest_edge": 80, "longest_edge": None}
        compare(processor(owner, size=size), "semantic", given, SIZES)
        given.patch_offsets = given.patch_offsets[:1]  # the first image has none
        compare(processor(owner, size=size), "semantic", given, SIZES)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "options",
        [
            {"threshold": 0.3},
            {"threshold": 0.3, "stuff_classes": [0, 1, 2, 3], "size": {**SIZE}},
            {"threshold": 0.3, "mask_threshold": 0.9, "overlap_mask_area_threshold": 0.1},
            {"threshold": 0.2, "overlap_mask_area_threshold": 0.0, "stuff_classes": list(range(7))},
            {"threshold": 0.999999},
        ],
    )
    def test_panoptic(self, owner: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
        results = compare(
            processor(owner, size=SIZE), "panoptic", outputs(dtype=dtype), SIZES, **options
        )
        assert any(each["segments_info"] for each in results) == (options["threshold"] < 0.9)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("threshold", [0, 0.3, 0.999999])
    def test_instances(self, owner: str, dtype: torch.dtype, threshold: float) -> None:
        results = compare(
            processor(owner, size=SIZE),
            "instance",
            outputs(dtype=dtype),
            SIZES,
            threshold=threshold,
        )
        assert any(each["segments_info"] for each in results) == (threshold < 0.9)

    @pytest.mark.parametrize("kind", ["semantic", "panoptic", "instance"])
    def test_sizes_that_do_not_fit(self, owner: str, kind: str) -> None:
        patch()
        method = getattr(processor(owner, size=SIZE), f"post_process_{kind}_segmentation")
        for sizes in (None, SIZES[:1]):
            with pytest.raises((TypeError, IndexError)):
                method(outputs(), sizes)

    @pytest.mark.parametrize(
        ("kind", "part"),
        [
            ("semantic", "merge_image_patches"),
            ("panoptic", "unpad_image"),
            ("instance", "unpad_image"),
        ],
    )
    def test_a_part_that_a_subclass_changes_runs_as_before(
        self, owner: str, kind: str, part: str
    ) -> None:
        shapes = []

        def own(self: Any, logits: Tensor, *args: Any) -> Any:
            shapes.append(logits.shape)
            return [-each for each in getattr(super(Mine, self), part)(logits, *args)]

        Mine = type("Mine", (INSTANCES[owner].find() or object,), {part: own})
        made: Any = object.__new__(Mine)
        given = outputs()
        given.patch_offsets = [(0, 0, 80), (1, 0, 80)]
        compare(made, kind, given, SIZES, size={"shortest_edge": 80, "longest_edge": None})
        assert len(shapes) == 2
        assert shapes[0] == shapes[1]

    def test_other_named_arguments_are_handled_as_before(self, owner: str) -> None:
        made = processor(owner, size=SIZE)
        if owner.endswith("Pil"):
            pytest.skip("transformers refuses them")
        patch()
        with pytest.warns(UserWarning, match="not valid for .*post_process_instance_segm"):
            made.post_process_instance_segmentation(outputs(), SIZES, mask_threshold=0.5)

    def test_one_image_and_few_maps_at_a_time(
        self, owner: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        largest = []
        resize = F.interpolate

        def watched(maps: Tensor, **options: Any) -> Tensor:
            result = resize(maps, **options)
            largest.append(result.shape[0] * result.shape[1])
            return result

        monkeypatch.setattr(F, "interpolate", watched)
        patch()
        made = processor(owner, size=SIZE)
        made.post_process_panoptic_segmentation(outputs(), SIZES, 0.1)
        made.post_process_instance_segmentation(outputs(), SIZES, 0.1)
        assert max(largest) <= 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("owner", MASKFORMER)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_sizes": SIZES, "threshold": 0},
        {"target_sizes": SIZES, "threshold": 0.3, "return_coco_annotation": True},
        {"target_sizes": SIZES, "threshold": 0.3, "return_binary_maps": True},
        {"return_binary_maps": True, "threshold": 0.3},
        {"target_sizes": SIZES, "threshold": 0.999999, "return_binary_maps": True},
    ],
)
def test_instances(owner: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    results = compare(processor(owner), "instance", outputs(dtype=dtype), **options)
    assert any(each["segments_info"] for each in results) == (options.get("threshold", 0) < 0.9)


@pytest.mark.parametrize("owner", MASKFORMER)
def test_two_kinds_of_maps_are_refused(owner: str) -> None:
    patch()
    with pytest.raises(ValueError, match="can not be both set to True"):
        processor(owner).post_process_instance_segmentation(
            outputs(), return_coco_annotation=True, return_binary_maps=True
        )


@pytest.mark.parametrize("owner", ONEFORMER)
@pytest.mark.parametrize("sizes", [SIZES, None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task_type": "panoptic", "threshold": 0.1},
        {"is_demo": False, "overlap_mask_area_threshold": 0.1},
        {"is_demo": False, "task_type": "panoptic", "return_coco_annotation": True},
        {"threshold": 0.999999},
    ],
)
def test_instances_of_oneformer(owner: str, sizes: Any, options: dict[str, Any]) -> None:
    made = processor(
        owner,
        class_info_file="ade20k_panoptic.json",
        metadata={
            "thing_ids": [5, 3, 1] if options.get("task_type") else [6, 5, 4, 3, 2, 1, 0],
        },
    )
    compare(made, "instance", outputs(), target_sizes=sizes, **options)


@pytest.mark.parametrize("total", [2, 3, 4, 7])
def test_some_maps_are_resized_like_all(total: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # PyTorch has a kernel of its own for three maps on one thread
    try:
        maps = torch.randn(1, total, 20, 30)
        expected = post_processing.interpolate(maps, (384, 320))
        for count in range(1, total + 1):
            some = post_processing.resize_some(
                post_processing.interpolate, maps[:, :count], (384, 320), total
            )
            assert torch.equal(some, expected[:, :count])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        (None, [[0], [1]]),
        ([(1, 0, 4), (0, 0, 4)], [[1], [0]]),
        ([(1, 0, 4)], None),
        ([(0, 0, 4), (1, 0, 4), (1, 2, 6)], None),
        ([(0, 0, 4), (2, 0, 4)], None),
    ],
)
def test_crops_of_each_image(offsets: Any, expected: Any) -> None:
    assert eomt_post_processing._patches(offsets, 2, SIZES) == expected
