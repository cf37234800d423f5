"""What the Triton kernels of all operations share; those themselves are in `mfkernels/ops/<op>`.

Nothing here imports Triton until a kernel is needed: `registration` says which file serves which
operator, and PyTorch's dispatcher calls it for CUDA tensors.
"""
