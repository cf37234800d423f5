"""SegmentTargets: both storages, every constructor, every error."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from helpers.strategies import Case, cases
from hypothesis import given, settings
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from mfkernels import MaskFormerCriterion, SegmentTargets, batch_linear_assignment, use_backend
from mfkernels.ops.loss_sums import loss_sums


def test_label_maps_are_padded_with_void() -> None:
    maps = [torch.tensor([[0, 1, -1]]), torch.tensor([[0], [0]], dtype=torch.uint8)]
    targets = SegmentTargets.from_label_maps(
        maps, [torch.tensor([4, 2]), torch.tensor([3], dtype=torch.int32)]
    )
    assert targets.label_map is not None
    assert targets.label_map.dtype == torch.int16
    assert targets.label_map.tolist() == [[[0, 1, -1], [-1, -1, -1]], [[0, -1, -1], [0, -1, -1]]]
    assert targets.labels.tolist() == [4, 2, 3]
    assert targets.labels.dtype == torch.int64
    assert (targets.counts, targets.offsets) == ((2, 1), (0, 2))
    assert (targets.batch_size, targets.num_segments, targets.max_count) == (2, 3, 2)
    assert targets.size == (2, 3)
    assert targets.device == torch.device("cpu")
    assert "label map of 2 images" in repr(targets)


def test_a_segment_for_each_class_of_a_map() -> None:
    maps = [torch.tensor([[7, 2, 255, 7]], dtype=torch.uint8), torch.tensor([[255, -1], [4, 0]])]
    targets = SegmentTargets.from_class_maps(maps)
    assert targets.label_map is not None
    assert targets.label_map.tolist() == [[[1, 0, -1, 1], [-1] * 4], [[-1] * 4, [1, 0, -1, -1]]]
    assert targets.labels.tolist() == [2, 7, 0, 4]
    assert targets.counts == (2, 2)
    other = SegmentTargets.from_class_maps(torch.tensor([[[0, 1]], [[0, 0]]]), ignore_index=0)
    assert (other.counts, other.labels.tolist()) == ((1, 0), [1])
    with pytest.raises(TypeError, match=r"class_maps\[0\]"):
        SegmentTargets.from_class_maps([torch.zeros(1, 2)])
    with pytest.raises(ValueError, match=r"class_maps\[1\] must be \[H, W\], got \[3\]"):
        SegmentTargets.from_class_maps([torch.zeros(1, 2).long(), torch.zeros(3).long()])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_class_maps_are_sorted_only_where_values_are_far_apart(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = [
        torch.tensor(rows, dtype=torch.int64).to(dtype)
        for rows in ([[3, -1, 100], [7, 3, 255]], [[-128, 127, 5]], [[255, 255]], [[]])
    ]
    maps.append(torch.tensor([[2**40, -(2**40), 3, 2**40]]))
    maps += [torch.tensor([[2**63 - 1, 2**63 - 3]]), torch.tensor([[1 - 2**63, -(2**63)]])]
    tables = SegmentTargets.from_class_maps(maps)
    monkeypatch.setattr("mfkernels.targets.MAX_TABLE", 0)
    expected = SegmentTargets.from_class_maps(maps)
    assert tables.counts == expected.counts
    assert tables.label_map is not None
    assert expected.label_map is not None
    assert torch.equal(tables.labels, expected.labels)
    assert torch.equal(tables.label_map, expected.label_map)


def test_masks_are_padded_with_zeros() -> None:
    masks = [torch.ones(2, 1, 3), torch.ones(0, 4, 1, dtype=torch.bool)]
    targets = SegmentTargets.from_masks(masks, [torch.tensor([1, 0]), torch.tensor([])])
    assert targets.masks is not None
    assert targets.masks.shape == (2, 4, 3)
    assert targets.masks.dtype == torch.bool
    assert targets.masks.sum((1, 2)).tolist() == [3, 3]
    assert targets.dense_masks(0).shape == (2, 4, 3)
    assert targets.dense_masks(1).shape == (0, 4, 3)
    assert SegmentTargets.from_masks(masks, [torch.ones(2).long(), torch.ones(0)], (8, 6)).size == (
        8,
        6,
    )


def test_padded_labels_and_counts() -> None:
    targets = SegmentTargets.from_label_maps(
        torch.full((3, 2, 2), -1), [torch.tensor([5, 6]), torch.tensor([]), torch.tensor([7])]
    )
    assert targets.padded_labels().tolist() == [[5, 6], [0, 0], [7, 0]]
    assert targets.padded_labels(fill=9).tolist() == [[5, 6], [9, 9], [7, 9]]
    assert targets.counts_tensor().tolist() == [2, 0, 1]
    assert targets.counts_tensor("meta").device.type == "meta"
    nothing = SegmentTargets.from_label_maps(torch.full((2, 2, 2), -1), [torch.ones(0)] * 2)
    assert nothing.padded_labels().shape == (2, 0)
    assert nothing.max_count == 0


@given(cases)
@settings(max_examples=50, deadline=None)
def test_both_storages_hold_the_same_masks(case: Case) -> None:
    masks = SegmentTargets.from_masks(case.masks(), case.labels())
    for image, expected in enumerate(case.masks()):
        assert torch.equal(masks.dense_masks(image), expected)
    if not case.overlap:
        label_map = case.targets()
        for image, expected in enumerate(case.masks()):
            assert torch.equal(label_map.dense_masks(image), expected)
        assert torch.equal(label_map.padded_labels(), masks.padded_labels())


def test_moving_keeps_everything_together() -> None:
    targets = Case().targets()
    moved = targets.to("meta", non_blocking=True)
    assert moved.device.type == "meta"
    assert moved.label_map is not None
    assert moved.label_map.device.type == moved.counts_tensor().device.type == "meta"
    assert moved.counts == targets.counts
    assert moved.padded_labels().shape == (2, 3)
    # The range of the labels was seen on the CPU, so a mistake is still found.
    with pytest.raises(ValueError, match="labels must be in"):
        moved.check_labels(1)
    assert targets.device.type == "cpu"


def test_survives_pickling_and_a_worker() -> None:
    targets = Case(overlap=True).targets()
    copied = pickle.loads(pickle.dumps(targets))
    (loaded,) = DataLoader([targets], batch_size=None, num_workers=1)
    for other in (copied, loaded):
        assert torch.equal(other.masks, targets.masks)
        assert torch.equal(other.padded_labels(), targets.padded_labels())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_memory_and_gpu() -> None:
    targets = Case().targets()
    assert targets.label_map is not None
    pinned = targets.pin_memory()
    assert pinned.label_map is not None
    assert pinned.label_map.is_pinned()
    assert pinned.labels.is_pinned()
    moved = pinned.to("cuda", non_blocking=True).to("cpu")
    assert moved.label_map is not None
    assert torch.equal(moved.label_map, targets.label_map)


def test_pin_memory_pins_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(1) or self)
    Case().targets().pin_memory()
    assert len(pinned) == 3  # labels, label map, counts


INT16 = torch.int16
ONE = torch.tensor([1])


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "exactly one", {"labels": ONE, "counts": (1,)}),
        (
            TypeError,
            "labels must be torch.int64, got torch.int32",
            {"labels": ONE.int(), "counts": (1,), "label_map": torch.zeros(1, 2, 2, dtype=INT16)},
        ),
        (
            ValueError,
            r"one entry per segment, shape \[2\]",
            {"labels": ONE, "counts": (2,), "label_map": torch.zeros(1, 2, 2, dtype=INT16)},
        ),
        (
            ValueError,
            "must not be negative",
            {
                "labels": ONE,
                "counts": (2, -1),
                "label_map": torch.zeros(2, 2, 2, dtype=INT16),
            },
        ),
        (
            TypeError,
            "label_map must be torch.int16",
            {"labels": ONE, "counts": (1,), "label_map": torch.zeros(1, 2, 2)},
        ),
        (
            ValueError,
            r"label_map must be \[B, H, W\] with B = 1 .* got \[2, 2, 2\]",
            {"labels": ONE, "counts": (1,), "label_map": torch.zeros(2, 2, 2, dtype=INT16)},
        ),
        (
            ValueError,
            "at most 32767 segments",
            {
                "labels": torch.zeros(40000, dtype=torch.int64),
                "counts": (40000,),
                "label_map": torch.zeros(1, 2, 2, dtype=INT16),
            },
        ),
        (
            ValueError,
            "image 0 holds segment index 1, but the image has 1",
            {"labels": ONE, "counts": (1,), "label_map": torch.ones(1, 2, 2, dtype=INT16)},
        ),
        (
            ValueError,
            "holds segment index -2",
            {"labels": ONE, "counts": (1,), "label_map": torch.full((1, 2, 2), -2, dtype=INT16)},
        ),
        (
            TypeError,
            "masks must be torch.bool",
            {"labels": ONE, "counts": (1,), "masks": torch.zeros(1, 2, 2)},
        ),
        (
            ValueError,
            r"N = 1 .* got \[2, 2, 2\]",
            {"labels": ONE, "counts": (1,), "masks": torch.zeros(2, 2, 2, dtype=torch.bool)},
        ),
        (
            ValueError,
            "labels are on cpu, but the segments on meta",
            {
                "labels": ONE,
                "counts": (1,),
                "masks": torch.zeros(1, 2, 2, dtype=torch.bool, device="meta"),
            },
        ),
    ],
)
def test_wrong_fields(
    error: type[Exception], match: str, arguments: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(error, match=match):
        SegmentTargets(**arguments)


@pytest.mark.parametrize(
    ("error", "match", "maps", "labels"),
    [
        (ValueError, "at least one image", [], []),
        (ValueError, "has 2 images, but labels has 1", torch.zeros(2, 3, 3).long(), [ONE]),
        (ValueError, r"label_maps\[0\] must be \[H, W\]", [torch.zeros(1, 3, 3).long()], [ONE]),
        (TypeError, r"label_maps\[0\] must have an integer dtype", [torch.zeros(3, 3)], [ONE]),
        (
            TypeError,
            r"labels\[0\] must have an integer dtype",
            [torch.zeros(3, 3).int()],
            [ONE / 2],
        ),
        (ValueError, r"labels\[0\] must be \[T\]", [torch.zeros(3, 3).int()], [ONE[None]]),
        # 65535 and 65536 would be −1 and 0 if they wrapped round; 255 is a common value for void.
        (ValueError, "segment index 32767", [torch.full((3, 3), 65535)], [ONE]),
        (ValueError, "segment index 32767", [torch.full((3, 3), 65536, dtype=torch.int32)], [ONE]),
        (ValueError, "segment index -2", [torch.full((3, 3), -65536)], [ONE]),
        (ValueError, "segment index 255", [torch.full((3, 3), 255, dtype=torch.uint8)], [ONE]),
    ],
)
def test_wrong_label_maps(
    error: type[Exception],
    match: str,
    maps: list[torch.Tensor],
    labels: list[torch.Tensor],
) -> None:
    with pytest.raises(error, match=match):
        SegmentTargets.from_label_maps(maps, labels)


@pytest.mark.parametrize(
    ("match", "masks", "size"),
    [
        (r"masks\[0\] must be \[T, H, W\]", torch.zeros(3, 3), None),
        (r"masks\[0\] has 2 masks, but labels\[0\] has 1", torch.zeros(2, 3, 3), None),
        ("0 and 1 only, got values from 0.0 to 255.0", torch.eye(3)[None] * 255, None),
        (
            "0 and 1 only, got values from 0 to 255",
            (torch.eye(3)[None] * 255).to(torch.uint16),
            None,
        ),
        (r"size \(2, 3\) is smaller than the largest mask \(3, 3\)", torch.zeros(1, 3, 3), (2, 3)),
    ],
)
def test_wrong_masks(match: str, masks: torch.Tensor, size: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match=match):
        SegmentTargets.from_masks([masks], [ONE], size)


@pytest.mark.parametrize("labels", [torch.tensor(1), torch.zeros(1, 1, dtype=torch.int64)])
def test_labels_of_a_wrong_shape(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels\[0\] must be \[T\], got \["):
        SegmentTargets.from_masks([torch.zeros(1, 2, 2)], [labels])


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_labels_out_of_range(wrong: int) -> None:
    targets = SegmentTargets.from_label_maps(
        torch.zeros(1, 2, 2, dtype=torch.uint8), [torch.tensor([2, wrong])]
    )
    with pytest.raises(ValueError, match=rf"0\.\.2 for 3 classes, got {wrong}"):
        targets.check_labels(3)
    SegmentTargets.from_label_maps(torch.zeros(1, 2, 2).int(), [torch.tensor([2])]).check_labels(3)


@pytest.mark.parametrize("destination", ["cpu", "cuda"])
def test_only_copies_from_a_gpu_make_the_host_wait(destination: str) -> None:
    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func is torch.ops.aten._to_copy.default:
                waits.append(not kwargs.get("non_blocking", False))
            return func(*args, **(kwargs or {}))

    waits: list[bool] = []
    source = "cuda" if destination == "cpu" else "cpu"
    with FakeTensorMode(), Copies():
        label_map = torch.empty(2, 4, 4, dtype=torch.int16, device=source)
        labels = torch.empty(3, dtype=torch.int64, device=source)
        targets = SegmentTargets(labels, (2, 1), label_map=label_map)
        targets.counts_tensor(destination)
        cost = torch.empty(2, 3, 3, device=destination)
        with use_backend("native"):
            batch_linear_assignment(cost, row_counts=targets.counts_tensor())
        losses = [torch.empty(shape, device=destination) for shape in ((1, 2, 3), (1, 2, 3), 1, 1)]
        with use_backend("reference"):
            loss_sums(*losses, torch.empty((), device=source), (1.0, 1.0, 1.0))
        criterion = MaskFormerCriterion(4).to(source)
        criterion._count(torch.empty(2, dtype=torch.int32, device=destination))
    assert len(waits) >= 4
    assert set(waits) == {destination == "cpu"}
