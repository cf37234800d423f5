"""Triton kernels: one file per operation, named like the operation.

Nothing here imports Triton until a kernel is needed: `registration` says which file serves which
operator, and PyTorch's dispatcher calls it for CUDA tensors.
"""
