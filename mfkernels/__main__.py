"""``python -m mfkernels``: what is built, what serves each operation, and why not the others."""

from __future__ import annotations

import argparse
import sys

import mfkernels
from mfkernels.backend import BackendError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mfkernels",
        description="Print what native code is built, what serves each operation, and why not the "
        "others.",
        epilog="MFKERNELS_BACKEND=reference, native or auto chooses who serves them.",
    )
    parser.add_argument("--version", action="version", version=f"mfkernels {mfkernels.__version__}")
    parser.parse_args()
    try:
        print(mfkernels.explain())
    except BackendError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
