"""The mask loss's products as they are compiled: for small GPUs, and how many instructions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from helpers.gpu.compiler import Launch, compile_launch, is_pinned, made_for
from helpers.gpu.launches import of_mask_loss
from helpers.gpu.sass import longest_loop

from mfkernels.triton.devices import KNOWN

NAMES = ("logits_kernel", "grad_embed_kernel", "grad_features_kernel")


def launches(architecture: str, dtype: torch.dtype) -> dict[str, Launch]:
    """Of products in the sizes of ADE20K at batch 16, as on a GPU of this architecture."""
    with made_for(architecture):
        found = of_mask_loss(dtype, 256, 9)
    return {launch.name: launch for launch in found if launch.name in NAMES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_86", "sm_120"])
def test_small_gpus(architecture: str, dtype: torch.dtype) -> None:
    """Registers and shared memory suffice; T4 has no bfloat16, so that it gets float32."""
    found = launches(architecture, dtype)
    for name in NAMES:
        compiled = compile_launch(found[name], architecture)
        assert compiled.spilled == 0 or not is_pinned(), name
        assert compiled.shared <= KNOWN[architecture].shared_memory, name
        assert compiled.tensor_cores == (architecture != "sm_75"), name


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
def test_instructions_on_hopper(dtype: torch.dtype) -> None:
    """Factors go to matrix units by warpgroups, and little else is done."""
    found = launches("sm_90", dtype)
    for name in NAMES:
        block = found[name].arguments["BLOCK"]
        threads = 32 * found[name].options["num_warps"]
        compiled = compile_launch(found[name], "sm_90")
        loop = longest_loop(compiled.binary)
        assert loop["HGMMA"] > 0, loop
        assert loop["F2F"] == 0, "numbers are converted one by one"
        per_element = loop.total() * threads / (block.channels * block.pixels)
        assert per_element <= BUDGETS[dtype, name], (name, per_element, loop)
