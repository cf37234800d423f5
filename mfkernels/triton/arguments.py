"""Groups of kernel arguments, as named tuples, which Triton accepts as arguments.

Kernels access the fields by name. Triton specialises each field like an argument of its own: an
integer 1 becomes a constant, and divisibility by 16 is known at compile time. Numbers that vary
from batch to batch are encoded with `unspecialized`, so that few kernels are compiled.
A `tl.constexpr` parameter may be a named tuple as well; all its fields are constants then.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mfkernels.triton.tensors import HALVES, pixel_stride, tf32_allowed


def unspecialized(number: int) -> int:
    """Encode a field that varies from batch to batch so that Triton never specialises it.

    The result is odd and greater than 1, while Triton specialises for 1 and for multiples of 16.
    `plain` decodes it in kernels.
    """
    return 2 * number + 3


class Predictions(NamedTuple):
    """Embeddings `[L, B, Q, C]` or dense logits `[L, B, Q, h, w]`, and their strides in elements.

    A missing axis has the stride 1, which Triton makes a constant.
    """

    ptr: Tensor
    layer_stride: int = 1
    image_stride: int = 1
    query_stride: int = 1
    channel_stride: int = 1
    pixel_stride: int = 1

    @classmethod
    def of(cls, tensor: Tensor, *, dense: bool) -> Predictions:
        """Make it of embeddings, or of dense logits whose pixels have a single stride.

        Leading axes may be missing.
        """
        layer, image, query = (1, 1, *tensor.stride()[: -2 if dense else -1])[-3:]
        if dense:
            return cls(tensor, layer, image, query, pixel_stride=pixel_stride(tensor))
        return cls(tensor, layer, image, query, channel_stride=tensor.stride(-1))


class Features(NamedTuple):
    """Pixel features `[B, C, h, w]`, and their strides in elements."""

    ptr: Tensor
    image_stride: int = 1
    channel_stride: int = 1
    pixel_stride: int = 1

    @classmethod
    def of(cls, tensor: Tensor) -> Features:
        """Make it of features whose pixels have a single stride; the image axis may be missing."""
        image = tensor.stride(-4) if tensor.ndim > 3 else 1
        return cls(tensor, image, tensor.stride(-3), pixel_stride(tensor))


class FocalParameters(NamedTuple):
    """The weights of the focal loss for targets of 1 and of 0 (from α), and its exponent γ."""

    positive_weight: float
    negative_weight: float
    gamma: float

    @classmethod
    def of(cls, alpha: float, gamma: float) -> FocalParameters:
        positive, negative = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
        return cls(positive, negative, float(gamma))


class SegmentValues(NamedTuple):
    """A tensor `[L, B, T]` with one value per layer and segment, and its strides in elements."""

    ptr: Tensor
    layer_stride: int
    image_stride: int
    segment_stride: int

    @classmethod
    def of(cls, tensor: Tensor) -> SegmentValues:
        return cls(tensor, *tensor.stride())


class LossGradients(NamedTuple):
    """The incoming gradients of the focal and dice loss of each row."""

    focal_ptr: Tensor
    dice_ptr: Tensor


class Product(NamedTuple):
    """How two factors are multiplied: in half precision if both have the same, else in float32."""

    half: bool
    tf32: bool

    @classmethod
    def of(cls, *factors: Tensor) -> Product:
        dtypes = {factor.dtype for factor in factors}
        return cls(len(dtypes) == 1 and dtypes <= set(HALVES), tf32_allowed())


class MaskAxis(NamedTuple):
    """Sizes along one axis: of the mask, the network's input, the image and the result.

    The image is the upper left part of the input, which may be padded.
    """

    mask: int
    input: int
    image: int
    result: int
