"""The ground-truth segments of a batch, in the form that every operation takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mfkernels.scalars import as_integer
from mfkernels.torch_internals import is_traced

_INCOMPARABLE = (torch.uint16, torch.uint32, torch.uint64)
"""Dtypes for which PyTorch has no comparisons."""
MAX_SEGMENTS_PER_IMAGE = torch.iinfo(torch.int16).max
MAX_TABLE = 2**16
"""Values in a range of at most this size are indexed with a lookup table; others are sorted."""


@dataclass(frozen=True, eq=False, repr=False)
class SegmentTargets:
    """The ground-truth segments of B images: `T_b` in image b, `N` in total.

    Use `from_label_maps`, `from_class_maps` or `from_masks` to make them. A segment may be empty
    (no pixel). Void and padding pixels are ordinary negatives of every segment, as in the official
    code.

    Values are checked only if that needs no synchronisation with a GPU. Segment indices are checked
    at construction if they are on the CPU. Labels are checked by `check_labels` if the targets were
    built on the CPU; `to` keeps the range of the labels for that.

    Args:
        labels: `[N]` int64, the class of each segment, image after image.
        counts: the numbers `T_b`, as Python integers, so that reading them never waits for a GPU.
        label_map: `[B, H, W]` int16. Each pixel holds the index of its segment in the image, or −1
            for no segment (void, padding). For semantic and panoptic targets, whose segments do not
            overlap; at most 32767 segments per image.
        masks: `[N, H, W]` bool, one mask per segment, image after image. For segments that may
            overlap. Pass exactly one of `label_map` and `masks`, on the device of `labels`.

    Raises:
        ValueError: the shapes or devices do not fit together, not exactly one of `label_map` and
            `masks` is given, a count is negative, or a segment index is outside `[-1, T_b)`.
        TypeError: a dtype is wrong.
    """

    labels: Tensor
    counts: tuple[int, ...]
    label_map: Tensor | None = None
    masks: Tensor | None = None
    _counts: Tensor = field(init=False)
    _label_limits: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        if (self.label_map is None) == (self.masks is None):
            raise ValueError("SegmentTargets takes exactly one of label_map and masks")
        _check_dtype("labels", self.labels, torch.int64)
        total = sum(self.counts)
        if self.labels.shape != (total,):
            raise ValueError(
                f"labels must have one entry per segment, shape [{total}] for counts "
                f"{list(self.counts)}; got {list(self.labels.shape)}"
            )
        if any(count < 0 for count in self.counts):
            raise ValueError(f"counts must not be negative, got {list(self.counts)}")
        if self.label_map is not None:
            self._check_label_map(self.label_map)
        else:
            self._check_masks(self._storage, total)
        if self._storage.device != self.labels.device:
            raise ValueError(
                f"labels are on {self.labels.device}, but the segments on {self._storage.device}"
            )
        # Kernels assume that labels are contiguous.
        object.__setattr__(self, "labels", self.labels.contiguous())
        # Fill the tensor element by element: on a GPU, that only launches kernels, while copying
        # from pageable host memory would synchronise.
        filled = [self.labels.new_full((), count) for count in self.counts]
        counts = torch.stack(filled) if filled else self.labels.new_zeros(0)
        object.__setattr__(self, "_counts", counts)
        readable = holds_values(self.labels) and total > 0
        limits = (int(self.labels.min()), int(self.labels.max())) if readable else None
        object.__setattr__(self, "_label_limits", limits)

    def __repr__(self) -> str:
        storage = "label map" if self.masks is None else "masks"
        return (
            f"SegmentTargets({storage} of {self.batch_size} images, size={self.size}, "
            f"counts={list(self.counts)}, device={self.device})"
        )

    def _check_label_map(self, label_map: Tensor) -> None:
        _check_dtype("label_map", label_map, torch.int16)
        if label_map.ndim != 3 or label_map.shape[0] != len(self.counts):
            raise ValueError(
                f"label_map must be [B, H, W] with B = {len(self.counts)} (the length of counts), "
                f"got {list(label_map.shape)}"
            )
        if self.max_count > MAX_SEGMENTS_PER_IMAGE:
            raise ValueError(
                f"an image can have at most {MAX_SEGMENTS_PER_IMAGE} segments in a label map, "
                f"got {max(self.counts)}"
            )
        if label_map.numel() == 0 or not holds_values(label_map):
            return
        flat = label_map.flatten(1)
        limits = zip(flat.amin(1).tolist(), flat.amax(1).tolist(), self.counts, strict=True)
        for image, (low, high, count) in enumerate(limits):
            if low < -1 or high >= count:
                wrong = low if low < -1 else high
                raise ValueError(
                    f"label_map of image {image} holds segment index {wrong}, but the image has "
                    f"{count} segments: expected −1 (void) or 0..{count - 1}"
                )

    def _check_masks(self, masks: Tensor, total: int) -> None:
        _check_dtype("masks", masks, torch.bool)
        if masks.ndim != 3 or masks.shape[0] != total:
            raise ValueError(
                f"masks must be [N, H, W] with N = {total} (the sum of counts), "
                f"got {list(masks.shape)}"
            )

    @property
    def _storage(self) -> Tensor:
        return cast(Tensor, self.label_map if self.masks is None else self.masks)

    @classmethod
    def from_label_maps(
        cls, label_maps: Tensor | Sequence[Tensor], labels: Sequence[Tensor]
    ) -> SegmentTargets:
        """Make targets from one map of segment indices per image; −1 means no segment.

        Args:
            label_maps: `[B, H, W]`, or B maps `[H_b, W_b]`; any integer dtype. Smaller maps are
                padded with −1 at the right and bottom to the largest height and width.
            labels: for each image, the classes `[T_b]` of its segments; any integer dtype.

        Raises:
            TypeError, ValueError: a dtype, shape or segment index is wrong, or there is no image.
        """
        maps = list(label_maps)
        _check_lengths("label_maps", maps, labels)
        for image, label_map in enumerate(maps):
            _check_integer(f"label_maps[{image}]", label_map)
            if label_map.ndim != 2:
                raise ValueError(f"label_maps[{image}] must be [H, W], got {list(label_map.shape)}")
        size = _largest([(m.shape[0], m.shape[1]) for m in maps])
        stacked = torch.stack([_pad(_saturate_to_int16(m), size, value=-1) for m in maps])
        return cls(_join_labels(labels), tuple(len(x) for x in labels), label_map=stacked)

    @classmethod
    def from_class_maps(
        cls, class_maps: Tensor | Sequence[Tensor], ignore_index: int = 255
    ) -> SegmentTargets:
        """Make targets for semantic segmentation: one segment per class present in an image.

        Args:
            class_maps: `[B, H, W]`, or B maps `[H_b, W_b]`, of class indices; any integer dtype.
            ignore_index: the value of pixels without a class. Negative values have no class either.

        Raises:
            TypeError, ValueError: a dtype or shape is wrong, or there is no image.
        """
        ignore_index = as_integer("ignore_index", ignore_index)
        label_maps, labels = [], []
        for image, class_map in enumerate(class_maps):
            _check_integer(f"class_maps[{image}]", class_map)
            if class_map.ndim != 2:
                raise ValueError(f"class_maps[{image}] must be [H, W], got {list(class_map.shape)}")
            if class_map.dtype in _INCOMPARABLE:
                class_map = class_map.long()
            values, positions = _index_values(class_map)
            is_class = (values != ignore_index) & (values >= 0)
            numbers = _saturate_to_int16((is_class.cumsum(0) - 1).where(is_class, -1))
            label_maps.append(numbers.index_select(0, positions.flatten()).view(positions.shape))
            labels.append(values[is_class])
        return cls.from_label_maps(label_maps, labels)

    @classmethod
    def from_masks(
        cls,
        masks: Sequence[Tensor],
        labels: Sequence[Tensor],
        size: tuple[int, int] | None = None,
    ) -> SegmentTargets:
        """Make targets from one stack of binary masks per image, the form of the official code.

        Args:
            masks: for each image, `[T_b, H_b, W_b]`, bool or any dtype with the values 0 and 1.
            labels: for each image, the classes `[T_b]`; any integer dtype.
            size: `(H, W)`. Masks are padded to it with zeros at the right and bottom. None: the
                largest height and width.

        Raises:
            TypeError, ValueError: a dtype, shape or mask value is wrong, `size` is too small, or
                there is no image.
        """
        _check_lengths("masks", masks, labels)
        for image, (mask, label) in enumerate(zip(masks, labels, strict=True)):
            if mask.ndim != 3:
                raise ValueError(f"masks[{image}] must be [T, H, W], got {list(mask.shape)}")
            if mask.shape[0] != len(label):
                raise ValueError(
                    f"masks[{image}] has {mask.shape[0]} masks, but labels[{image}] has "
                    f"{len(label)} entries"
                )
            readable = mask.dtype != torch.bool and mask.numel() > 0 and holds_values(mask)
            if readable and not torch.equal(mask.bool().to(mask.dtype), mask):
                values = mask.long() if mask.dtype in _INCOMPARABLE else mask
                raise ValueError(
                    f"masks[{image}] must hold 0 and 1 only, "
                    f"got values from {values.min().item()} to {values.max().item()}"
                )
        largest = _largest([(m.shape[1], m.shape[2]) for m in masks])
        if size is None:
            size = largest
        elif largest[0] > size[0] or largest[1] > size[1]:
            raise ValueError(f"size {tuple(size)} is smaller than the largest mask {largest}")
        joined = torch.cat([_pad(mask.bool(), size, value=0) for mask in masks])
        return cls(_join_labels(labels), tuple(len(x) for x in labels), masks=joined)

    @property
    def batch_size(self) -> int:
        """`B`, the number of images."""
        return len(self.counts)

    @property
    def size(self) -> tuple[int, int]:
        """`(H, W)`, in pixels."""
        height, width = self._storage.shape[-2:]
        return height, width

    @property
    def num_segments(self) -> int:
        """`N`, the number of segments of all images; with `of_capacity`, the room for them."""
        return len(self.labels)

    @property
    def max_count(self) -> int:
        """`T`, the largest number of segments in an image; 0 without images."""
        return max((0, *self.counts))

    @property
    def offsets(self) -> tuple[int, ...]:
        """The index of each image's first segment in `labels` and `masks`."""
        offsets = [0]
        for count in self.counts[:-1]:
            offsets.append(offsets[-1] + count)
        return tuple(offsets[: len(self.counts)])

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.labels.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SegmentTargets:
        """Return the targets on another device; the arguments are those of `torch.Tensor.to`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SegmentTargets:
        """Return a copy in page-locked memory; a `DataLoader` with `pin_memory=True` calls this."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, move: Callable[[Tensor], Tensor]) -> SegmentTargets:
        # `copy.copy` would be shorter, but `torch.compile` of torch 2.11 cannot trace it.
        moved = object.__new__(type(self))
        for name in ("labels", "counts", "label_map", "masks", "_counts", "_label_limits"):
            value = getattr(self, name)
            object.__setattr__(moved, name, move(value) if isinstance(value, Tensor) else value)
        return moved

    def with_capacity(
        self, max_count: int, max_total: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the targets as tensors padded to a fixed capacity, for `of_capacity`.

        Their shapes do not depend on T and N, which CUDA graphs require.

        Args:
            max_count: the largest number of segments per image.
            max_total: the largest number of segments in the batch. None: `B · max_count`.

        Returns:
            Labels `[max_total]` int64, counts `[B]` int64, and the label map `[B, H, W]` or the
            masks `[max_total, H, W]`. Labels and masks beyond N are 0.

        Raises:
            ValueError: an image has more than `max_count` segments, or all have more than
                `max_total`.
        """
        if self.max_count > max_count:
            raise ValueError(f"an image has {self.max_count} segments, more than {max_count}")
        max_total = self.batch_size * max_count if max_total is None else max_total
        if self.num_segments > max_total:
            raise ValueError(f"images have {self.num_segments} segments, more than {max_total}")
        missing = max_total - self.num_segments
        segments = self._storage
        if self.masks is not None:
            segments = F.pad(self.masks, (0, 0, 0, 0, 0, missing))
        return F.pad(self.labels, (0, missing)), self._counts, segments

    @classmethod
    def of_capacity(
        cls, labels: Tensor, counts: Tensor, segments: Tensor, max_count: int, *, overlap: bool
    ) -> SegmentTargets:
        """Make targets whose numbers of segments are known only on the GPU, for CUDA graphs.

        `counts` and `offsets` of the result assume that every image has `max_count` segments;
        nothing is checked. Only native kernels use the true counts; plain PyTorch treats all
        `max_count` segments as real. On a CPU, where the counts can be read, the result equals the
        original targets.

        Args:
            labels, counts, segments: from `with_capacity`.
            max_count: as passed to `with_capacity`.
            overlap: True if `segments` are masks, False if they are a label map.
        """
        if holds_values(counts):
            numbers = tuple(counts.tolist())
            total = sum(numbers)
            storage = {"masks": segments[:total]} if overlap else {"label_map": segments}
            return cls(labels[:total], numbers, **storage)
        targets = object.__new__(cls)
        values = {
            "labels": labels,
            "counts": (max_count,) * len(counts),
            "label_map": None if overlap else segments,
            "masks": segments if overlap else None,
            "_counts": counts,
            "_label_limits": None,
        }
        for name, value in values.items():
            object.__setattr__(targets, name, value)
        return targets

    def counts_tensor(self, device: torch.device | str | None = None) -> Tensor:
        """Return `counts` as a tensor `[B]` int64, by default on the device of the targets."""
        return self._counts if device is None else copied_to(self._counts, device)

    def padded_labels(self, fill: int = 0) -> Tensor:
        """Return `labels` as `[B, T]` int64, with `fill` beyond an image's own segments."""
        if self.num_segments == 0:
            return self.labels.new_full((self.batch_size, self.max_count), fill)
        counts = self.counts_tensor()[:, None]
        position = torch.arange(self.max_count, device=self.device)
        index = counts.cumsum(0) - counts + position
        labels = self.labels[index.clamp(max=self.num_segments - 1)]
        return torch.where(position < counts, labels, fill)

    def dense_masks(self, image: int) -> Tensor:
        """Return the masks of one image, `[T_b, H, W]` bool."""
        count = self.counts[image]
        if self.masks is not None:
            return self.masks.narrow(0, self.offsets[image], count)
        label_map = cast(Tensor, self.label_map)[image]
        segments = torch.arange(count, dtype=torch.int16, device=self.device)
        return label_map == segments[:, None, None]

    def check_labels(self, num_classes: int, *, no_object: bool = False) -> None:
        """Check that all labels are in `[0, num_classes)`.

        This never waits for a GPU: labels that were already on a GPU when the targets were built
        are not checked.

        Args:
            num_classes: K.
            no_object: also allow the label K, "no object".

        Raises:
            ValueError: a label is out of range.
        """
        limits = self._label_limits
        if limits is not None and (limits[0] < 0 or limits[1] >= num_classes + no_object):
            wrong = limits[0] if limits[0] < 0 else limits[1]
            also = f' (or {num_classes}, "no object")' if no_object else ""
            raise ValueError(
                f"labels must be in 0..{num_classes - 1} for {num_classes} classes{also}, got "
                f"{wrong}; check the label offset, and leave out the ignore value"
            )


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds integers; booleans and quantized numbers are none."""
    fractional = tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized
    return not fractional and tensor.dtype != torch.bool


def copied_to(
    tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the tensor on a device. The host does not wait for copies to a GPU.

    It must wait for copies from one: `Tensor.to(non_blocking=True)` would return before the values
    have arrived.
    """
    return tensor.to(device, dtype, non_blocking=torch.device(device).type != "cpu")


def holds_values(tensor: Tensor) -> bool:
    """Whether values can be read without synchronising: on the CPU, not fake, traced or wrapped.

    Subclasses that add no data (`Parameter`, `tv_tensors.Mask`) count as plain tensors.
    """
    return (
        tensor.device.type == "cpu"
        and not is_traced(tensor)
        and not is_traceable_wrapper_subclass(tensor)
    )


def _check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    _check_tensor(name, tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def _check_integer(name: str, tensor: Tensor) -> None:
    _check_tensor(name, tensor)
    if not is_integer(tensor):
        raise TypeError(f"{name} must have an integer dtype, got {tensor.dtype}")


def _check_lengths(name: str, images: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
    if len(images) == 0:
        raise ValueError(f"{name} must hold at least one image")
    if len(images) != len(labels):
        raise ValueError(f"{name} has {len(images)} images, but labels has {len(labels)}")
    for image, label in enumerate(labels):
        _check_tensor(f"{name}[{image}]", images[image])
        _check_tensor(f"labels[{image}]", label)
        if label.ndim != 1:
            raise ValueError(f"labels[{image}] must be [T], got {list(label.shape)}")
        # An empty list of labels often arrives as an empty float tensor.
        if len(label) > 0:
            _check_integer(f"labels[{image}]", label)


def _join_labels(labels: Sequence[Tensor]) -> Tensor:
    return torch.cat([label.long() for label in labels])


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _index_values(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of the maps in ascending order, and for each pixel the index of its value.

    The values may include entries of −1 for values of the range that no pixel has.
    """
    low, high = map(int, maps.aminmax()) if maps.numel() else (0, 0)
    if high - low >= MAX_TABLE:
        return maps.unique(return_inverse=True)
    positions = maps.long() - low
    present = torch.bincount(positions.flatten(), minlength=1) > 0
    values = torch.arange(high - low + 1, device=maps.device) + low
    return values.where(present, -1), positions


def _saturate_to_int16(label_map: Tensor) -> Tensor:
    """Convert to int16 without wraparound: an index that is out of range stays out of range."""
    if label_map.dtype in (torch.int16, torch.int8, torch.uint8):
        return label_map.to(torch.int16)
    if label_map.dtype in _INCOMPARABLE:
        label_map = label_map.long()
    return label_map.clamp(-2, MAX_SEGMENTS_PER_IMAGE).to(torch.int16)


def _pad(tensor: Tensor, size: tuple[int, int], value: int) -> Tensor:
    bottom, right = size[0] - tensor.shape[-2], size[1] - tensor.shape[-1]
    return F.pad(tensor, (0, right, 0, bottom), value=value) if bottom or right else tensor
