"""Arguments that travel together, as named tuples: Triton takes them as arguments of kernels.

Fields are reached by name in kernels, too, and each is specialised as an argument of its own is: a
number that is 1 becomes a constant, and divisibility by 16 is known. Numbers that vary from batch
to batch go through `unspecialized`, so that few kernels are compiled.
A parameter that is a `tl.constexpr` may be a named tuple as well: all its fields are constants.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mfkernels.triton.tensors import HALVES, pixel_stride, tf32_allowed


def unspecialized(number: int) -> int:
    """A number in a tuple that varies from batch to batch, so that no kernel is compiled for it.

    The result is odd and above 1, which is all that Triton asks; `plain` undoes it in kernels.
    """
    return 2 * number + 3


class Predictions(NamedTuple):
    """Embeddings `[L, B, Q, C]` or dense logits `[L, B, Q, h, w]`, and their strides.

    An axis that is not there keeps 1: not an argument then.
    """

    ptr: Tensor
    layer_stride: int = 1
    image_stride: int = 1
    query_stride: int = 1
    channel_stride: int = 1
    pixel_stride: int = 1

    @classmethod
    def of(cls, tensor: Tensor, *, dense: bool) -> Predictions:
        """Of embeddings, or of dense logits with flat pixels; the leading axes may be missing."""
        layer, image, query = (1, 1, *tensor.stride()[: -2 if dense else -1])[-3:]
        if dense:
            return cls(tensor, layer, image, query, pixel_stride=pixel_stride(tensor))
        return cls(tensor, layer, image, query, channel_stride=tensor.stride(-1))


class Features(NamedTuple):
    """Pixel features `[B, C, h, w]`, and their strides."""

    ptr: Tensor
    image_stride: int = 1
    channel_stride: int = 1
    pixel_stride: int = 1

    @classmethod
    def of(cls, tensor: Tensor) -> Features:
        """Of features with flat pixels; the axis of images may be missing."""
        image = tensor.stride(-4) if tensor.ndim > 3 else 1
        return cls(tensor, image, tensor.stride(-3), pixel_stride(tensor))


class FocalParameters(NamedTuple):
    """The weights of the focal loss where the target is 1 and where it is 0, and its exponent."""

    positive_weight: float
    negative_weight: float
    gamma: float

    @classmethod
    def of(cls, alpha: float, gamma: float) -> FocalParameters:
        positive, negative = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
        return cls(positive, negative, float(gamma))


class SegmentValues(NamedTuple):
    """What segments have, `[L, B, T]`, and its strides."""

    ptr: Tensor
    layer_stride: int
    image_stride: int
    segment_stride: int

    @classmethod
    def of(cls, tensor: Tensor) -> SegmentValues:
        return cls(tensor, *tensor.stride())


class LossGradients(NamedTuple):
    """The gradients of the focal and dice losses of rows."""

    focal_ptr: Tensor
    dice_ptr: Tensor


class Product(NamedTuple):
    """How two factors are multiplied: both in half precision as they are, others as float32."""

    half: bool
    tf32: bool

    @classmethod
    def of(cls, *factors: Tensor) -> Product:
        dtypes = {factor.dtype for factor in factors}
        return cls(len(dtypes) == 1 and dtypes <= set(HALVES), tf32_allowed())


class MaskAxis(NamedTuple):
    """Sizes along one axis of the image: of the mask, the network's input, the image, the result.

    The image is the upper left part of the input.
    """

    mask: int
    input: int
    image: int
    result: int
