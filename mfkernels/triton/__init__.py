"""Code that the Triton kernels share; the kernels themselves are in `mfkernels/ops/<op>`.

`devices`, `arguments` and `tensors` import no Triton. The other modules do: the first call for CUDA
tensors imports them (`mfkernels.ops.common.registration`).
"""
