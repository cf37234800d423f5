"""The products of the mask loss in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers.gpu.interpreter import assert_as_exact
from torch import Tensor

from mfkernels.ops.mask_loss import triton_product_launch
from mfkernels.ops.mask_loss.operator import Inputs
from mfkernels.ops.mask_loss.triton_problem import Problem
from mfkernels.triton import devices, products
from mfkernels.triton.products import Planes

LAYERS, QUERIES = 3, 31


@dataclass(frozen=True)
class Products:
    """Random factors and gradients; each segment `t` of layer `l` is matched to `assignment`."""

    embed: Tensor
    features: Tensor
    grad_logits: Tensor
    """`[L, B, T, h·w]`, NaN where no segment is."""
    counts: Tensor
    assignment: Tensor

    @classmethod
    def of(
        cls, counts: tuple[int, ...], channels: int, pixels: tuple[int, int], dtype: torch.dtype
    ) -> Products:
        images, most = len(counts), max(counts)
        assignment = torch.rand(LAYERS, images, QUERIES).argsort(-1)[..., :most].contiguous()
        assignment[0, 0, 0] = -1
        grad_logits = torch.randn(LAYERS, images, most, pixels[0] * pixels[1])
        inside = torch.arange(most) < torch.tensor(counts)[:, None]
        return cls(
            embed=torch.randn(LAYERS, images, QUERIES, channels).to(dtype),
            features=torch.randn(images, channels, *pixels).to(dtype),
            grad_logits=grad_logits.where((inside & (assignment >= 0))[..., None], torch.nan),
            counts=torch.tensor(counts),
            assignment=assignment,
        )

    def found(self) -> list[Tensor]:
        """Logits `[L, B, T, h·w]` (0 where there is none) and both gradients by the kernels."""
        images, _, *pixels = self.features.shape
        label_map = torch.zeros(images, *pixels, dtype=torch.int16)
        given = Inputs(
            *(self.embed, self.features, label_map, None),
            *(self.counts, self.assignment, int(self.counts.sum()), 0.25, 2.0),
        )
        problem = Problem.of(given)
        (sizes, group), *others = problem.groups()
        assert not others
        logits = triton_product_launch.launch_logits(problem, sizes, group).ptr
        shape = (triton_product_launch.splits_of(problem), *self.assignment.shape, problem.channels)
        partial = self.features.new_empty(shape, dtype=torch.float32)
        grad_embed = self.embed.new_empty(self.embed.shape)
        grad_features = self.features.new_empty(self.features.shape)
        # Workspaces hold the segments that there are, one image after the other.
        exists = torch.arange(self.assignment.shape[2]) < self.counts[:, None]
        gradient = self.grad_logits[:, exists]
        triton_product_launch.launch_grad_embed(problem, sizes, gradient, partial, group)
        triton_product_launch.launch_grad_embed_sum(problem, partial, grad_embed)
        triton_product_launch.launch_grad_features(problem, sizes, gradient, grad_features, group)
        written = torch.zeros_like(self.grad_logits)
        written[:, exists] = logits.where(gradient.isfinite(), 0)
        return [written, grad_embed, grad_features]

    def expected(self, dtype: torch.dtype) -> list[Tensor]:
        """The same in plain PyTorch at some precision."""
        layer = torch.arange(LAYERS)[:, None, None]
        image = torch.arange(len(self.counts))[None, :, None]
        matched = self.grad_logits[..., 0].isfinite()
        rows = self.embed[layer, image, self.assignment].to(dtype)
        rows = rows.where(matched[..., None], 0)
        features = self.features.flatten(2).to(dtype)
        gradient = self.grad_logits.nan_to_num(0.0).to(dtype)
        grad_embed = torch.zeros(self.embed.shape, dtype=dtype)
        of_rows = torch.einsum("lbtp,bcp->lbtc", gradient, features)
        where = self.assignment.clamp(min=0)[..., None].expand(of_rows.shape)
        grad_embed.scatter_add_(2, where, of_rows.where(matched[..., None], 0))
        grad_features = torch.einsum("lbtc,lbtp->bcp", rows, gradient)
        logits = torch.einsum("lbtc,bcp->lbtp", rows, features)
        logits = logits.where(matched[..., None], 0)
        return [logits, grad_embed, grad_features.view(self.features.shape)]


def assert_exact(some: Products) -> None:
    logits, *gradients = some.expected(torch.float32)
    plain = [logits, *(x.to(some.embed.dtype).float() for x in gradients)]
    assert_as_exact([x.float() for x in some.found()], plain, some.expected(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("counts", "channels", "pixels"),
    [((3, 0), 5, (3, 4)), ((2, 25), 70, (11, 13)), ((31,), 130, (5, 27))],
)
def test_as_exact_as_plain_pytorch(
    counts: tuple[int, ...], channels: int, pixels: tuple[int, int], dtype: torch.dtype
) -> None:
    """One and several tiles of rows, channels and pixels, none of them full."""
    assert_exact(Products.of(counts, channels, pixels, dtype))


@pytest.mark.parametrize(("embed", "features"), [(1e30, 1e-30), (1e-30, 1e30), (1e-25, 1e-3)])
def test_of_huge_and_tiny_values(embed: float, features: float) -> None:
    """Within the range of float32, whatever that of half precision is; every row by itself."""
    drawn = Products.of((4, 2), 40, (6, 7), torch.float32)
    scale = 10 ** torch.linspace(-2, 2, QUERIES)[:, None]
    scaled = Products(
        drawn.embed * embed * scale,
        drawn.features * features,
        drawn.grad_logits / features,
        drawn.counts,
        drawn.assignment,
    )
    truth, plain = scaled.expected(torch.float64), scaled.expected(torch.float32)
    for ours, same, exact in zip(scaled.found(), plain, truth, strict=True):
        largest = exact.abs().amax(-1, keepdim=True)
        error = ((ours - exact).abs() / largest).nan_to_num(0.0).max()
        assert error <= 2 * ((same - exact).abs() / largest).nan_to_num(0.0).max() + 4 * 2**-23


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so_and_with_its_row_pixel_and_image(
    bad: float, dtype: torch.dtype
) -> None:
    drawn = Products.of((4, 2), 40, (6, 7), dtype)
    good = drawn.found()
    drawn.embed[1, 0, drawn.assignment[1, 0, 2], 7] = bad
    drawn.features[1, 3, 0, 5] = bad
    logits, grad_embed, grad_features = drawn.found()
    spoilt = torch.zeros(logits.shape, dtype=torch.bool)
    spoilt[1, 0, 2] = True
    spoilt[:, 1, :2, 5] = True
    assert torch.equal(~logits.isfinite(), spoilt)
    assert torch.equal(logits[~spoilt], good[0][~spoilt])
    assert torch.equal(grad_embed[:, 0], good[1][:, 0])
    assert not grad_embed[:, 1, :, 3].isfinite().all()
    assert not grad_features[0, 7].isfinite().any()
    assert torch.equal(grad_features[1], good[2][1])


def planes(*dtypes: torch.dtype) -> Planes:
    return Planes.of(*dtypes, device=torch.device("cpu"))


def test_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few as hold the factors, and no more than the result can show."""
    single, half, brain = torch.float32, torch.float16, torch.bfloat16
    assert planes(brain, brain) == planes(half, half) == (1, 1, 0)
    assert planes(single, single) == (3, 3, 2)
    assert planes(half, brain) == (2, 1, 2)
    assert planes(brain, single, brain) == (1, 2, 1)
    assert planes(half, single, half) == (2, 2, 1)
    assert planes(brain, single, single) == (1, 3, 2)
    with monkeypatch.context() as patch:
        patch.setattr(products, "tf32_allowed", lambda: True)
        assert planes(single, single) == (2, 2, 1)
    monkeypatch.setattr(devices, "assumed", devices.KNOWN["sm_75"])
    assert planes(half, half) == (1, 1, 0)
    assert planes(brain, brain) == planes(single, single) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_units_for_bfloat16(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "assumed", devices.KNOWN["sm_75"])
    assert_exact(Products.of((2, 25), 70, (11, 13), dtype))
