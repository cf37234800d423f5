"""How the threads of OpenMP, in which PyTorch computes on CPUs, wait for work."""

from __future__ import annotations

import os

SPINS = 1000
"""Some ten microseconds; libgomp takes 300,000 unless its own threads are more than the CPUs."""


def wait_briefly() -> None:
    """Lets waiting threads give up their CPU after microseconds instead of milliseconds, for loader
    workers and other programs, unless the environment says how they wait.

    Called before PyTorch is imported. Two CPUs beside one busy process: `make train` 26 instead of
    16 images/s; alone, as many within noise (benchmarks/NOTES.md).
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
