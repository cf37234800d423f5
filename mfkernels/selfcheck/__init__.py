"""``python -m mfkernels check``: check every operation on this machine.

Each problem is computed by the native kernel and by plain PyTorch in the same precision, and both
are compared with plain PyTorch in float64. The kernel's error may be at most twice that of plain
PyTorch, plus a few roundings.
"""

from mfkernels.selfcheck.checks import Row, check

__all__ = ["Row", "check"]
