"""The oracle of every operation: plain PyTorch (and SciPy), obviously right, also a backend."""
