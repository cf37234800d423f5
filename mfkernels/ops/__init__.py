"""One folder per operation: the public function, its operators, the oracle, the Triton kernels.

`reference.py` is plain PyTorch (or SciPy), obviously right, and also a backend.
"""
