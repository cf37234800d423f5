"""One folder per operation: the public function, its operators, the oracle, the Triton kernels.

`reference.py` is the oracle: plain PyTorch (or SciPy), kept simple. It is also a backend.
"""
