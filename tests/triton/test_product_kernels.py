"""The mask loss's products as they are compiled: for small GPUs, and how many instructions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from helpers.gpu.compiler import Launch, compile_launch, is_pinned, recorded
from helpers.gpu.sass import longest_loop

from mfkernels.ops.mask_loss import triton_products
from mfkernels.ops.mask_loss.triton_launch import mask_loss, mask_loss_backward
from mfkernels.triton import products

LAYERS, IMAGES, QUERIES, CHANNELS = 6, 16, 100, 256
NAMES = ("logits_kernel", "grad_embed_kernel", "grad_features_kernel")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(
    monkeypatch: pytest.MonkeyPatch, architecture: int, dtype: torch.dtype, count: int = 9
) -> dict[str, Launch]:
    """Of products in the sizes of ADE20K at batch 16, as on a GPU of this architecture."""
    for module in (triton_products, products):
        monkeypatch.setattr(module, "compute_capability", lambda _: divmod(architecture, 10))
    inputs = (
        meta(LAYERS, IMAGES, QUERIES, CHANNELS, dtype=dtype),
        meta(IMAGES, CHANNELS, 128, 128, dtype=dtype),
        meta(IMAGES, 512, 512, dtype=torch.int16),
        None,
        meta(IMAGES, dtype=torch.int64),
        meta(LAYERS, IMAGES, count, dtype=torch.int64),
        *(0.25, 2.0),
    )
    losses = meta(LAYERS, IMAGES, count)
    with recorded() as found:
        *_, sums, maps = mask_loss(*inputs, True)
        mask_loss_backward(losses, losses, sums, maps, *inputs, True, True)
    return {launch.name: launch for launch in found if launch.name in NAMES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "kilobytes"), [(75, 64), (86, 99), (120, 99)])
def test_small_gpus(
    architecture: int, kilobytes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registers and shared memory suffice; T4 has no bfloat16, so that it gets float32."""
    found = launches(monkeypatch, architecture, dtype)
    for name in NAMES:
        compiled = compile_launch(found[name], architecture)
        assert compiled.spilled == 0 or not is_pinned(), name
        assert compiled.shared <= kilobytes * 1024, name
        assert compiled.tensor_cores == (architecture > 75), name


BUDGETS = {
    (torch.bfloat16, "logits_kernel"): 4.5,
    (torch.bfloat16, "grad_embed_kernel"): 7.5,
    (torch.bfloat16, "grad_features_kernel"): 7.5,
    (torch.float32, "logits_kernel"): 31.0,
    (torch.float32, "grad_embed_kernel"): 25.0,
    (torch.float32, "grad_features_kernel"): 38.0,  # of 64 rows; of 32 rows it was 26, and slower
}
"""Instructions of a step for each element of its tile of features, or of their gradient."""


@pytest.mark.skipif(not is_pinned(), reason="counts are those of the pinned Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instructions_on_hopper(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors go to matrix units by warpgroups, and little else is done."""
    found = launches(monkeypatch, 90, dtype)
    for name in NAMES:
        block = found[name].arguments["BLOCK"]
        threads = 32 * found[name].options["num_warps"]
        compiled = compile_launch(found[name], 90)
        loop = longest_loop(compiled.cubin)
        assert loop["HGMMA"] > 0, loop
        assert loop["F2F"] == 0, "numbers are converted one by one"
        per_element = loop.total() * threads / (block.channels * block.pixels)
        assert per_element <= BUDGETS[dtype, name], (name, per_element, loop)
