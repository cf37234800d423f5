"""``python -m mfkernels``: what is built, what serves each operation, and why not the others."""

import mfkernels

if __name__ == "__main__":
    print(mfkernels.explain())
