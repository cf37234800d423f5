"""How OpenMP threads, which PyTorch uses on CPUs, wait for work."""

from __future__ import annotations

import os

SPINS = 1000
"""Number of spins of a waiting thread, about ten microseconds. The default of libgomp is 300,000
unless it has more threads than there are CPUs.
"""


def limit_spinning() -> None:
    """Make waiting threads release their CPU after microseconds instead of milliseconds, so that
    data loader workers and other programs can use it. Settings in the environment take precedence.

    This must be called before PyTorch is imported. On two CPUs next to one busy process,
    `make train` processes 26 instead of 16 images/s; without other load, there is no difference
    (benchmarks/NOTES.md).
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
