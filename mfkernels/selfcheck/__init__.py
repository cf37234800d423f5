"""Checks every operation on this machine: ``python -m mfkernels check``.

Each problem is computed by the native kernels and by plain PyTorch in the same precision, and both
are compared with plain PyTorch in float64: a kernel may be off by no more than plain PyTorch is,
times two, and a few roundings.
"""

from mfkernels.selfcheck.checks import Row, check

__all__ = ["Row", "check"]
