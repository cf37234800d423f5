"""Small calls of every CUDA kernel, for compute-sanitizer."""

from __future__ import annotations

import torch

import mfkernels


def assignment() -> None:
    """One warp on chip, one warp off chip, eight warps; ragged, infeasible, both tie rules."""
    for shape in ((3, 5, 7), (4, 40, 20), (2, 66, 66), (1, 300, 300), (1, 20, 600)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            cost = torch.randn(shape, device="cuda").to(dtype)
            cost[:, ::2, 1:] = float("inf")
            counts = torch.randint(0, shape[1] + 1, shape[:1], device="cuda")
            for strict in (False, True):
                mfkernels.batch_linear_assignment(cost, counts, strict=strict)


if __name__ == "__main__":
    with mfkernels.use_backend("native"):
        assignment()
    torch.cuda.synchronize()
    print("done")
