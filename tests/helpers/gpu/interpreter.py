"""A pytest plugin with the fixtures that every test in Triton's interpreter needs.

test_triton_interpreter.py runs the tests of test_*_triton.py in a process with
TRITON_INTERPRET=1, which has to be set before Triton is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from mfkernels.triton import launcher


@pytest.fixture(autouse=True)
def corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correct the interpreter's bfloat16: it stores the bits as integers, multiplies those, and
    rounds float32 wrongly.
    """
    handle = interpreter.TensorHandle
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return handle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, widened(a), widened(b), *others)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if target.scalar != tl.bfloat16 or source.dtype.scalar != tl.float32:
            return cast(self, source, target)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return handle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    monkeypatch.setattr(builder, "create_dot", create_dot)
    monkeypatch.setattr(builder, "cast_impl", cast_impl)


@functools.cache
def language_of(function: Any) -> list[Any]:
    """The modules of Triton's language among the globals of a kernel's module."""
    return [part for part in (tl, tl.core) if part in function.__globals__.values()]


@pytest.fixture(autouse=True)
def patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch Triton's language only once. Otherwise every call of a kernel patches all of it again,
    which takes half of the tests' time.
    """

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if any(tl.core.is_builtin(part.load) for part in language_of(self.fn)):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **named)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a kernel argument, which may be a nested tuple."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_in(part)


def extent(tensor: Tensor) -> tuple[int, int]:
    """The address range that a kernel may access: a tensor's elements or, for a view that is not
    contiguous, the rest of its storage.
    """
    begin = tensor.data_ptr()
    if tensor.is_contiguous():
        return begin, begin + tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return begin, storage.data_ptr() + storage.nbytes()


@pytest.fixture(autouse=True)
def within_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that kernels access no memory outside their arguments: on a GPU it may be unmapped."""
    builder = interpreter.InterpreterBuilder
    load, store, start = builder.create_masked_load, builder.create_masked_store, launcher.start
    extents: list[tuple[int, int]] = []

    def noted_start(kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
        found = (tensor for value in arguments.values() for tensor in tensors_in(value))
        extents[:] = [extent(tensor) for tensor in found if tensor.numel() > 0]
        start(kernel, grid, **arguments)

    def check(pointers: Any, mask: Any) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        begin = pointers.data.astype(np.uint64)[mask.data]
        inside = np.zeros(begin.shape, np.bool_)
        for first, last in extents:
            inside |= (begin >= first) & (begin + np.uint64(size) <= last)
        assert inside.all(), f"{(~inside).sum()} addresses lie outside all arguments"

    def masked_load(self: Any, pointers: Any, mask: Any, *others: Any, **named: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *others, **named)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        check(pointers, mask)
        return store(self, pointers, value, mask, *others)

    monkeypatch.setattr(launcher, "start", noted_start)
    monkeypatch.setattr(builder, "create_masked_load", masked_load)
    monkeypatch.setattr(builder, "create_masked_store", masked_store)


@pytest.fixture(autouse=True)
def masks_of_one_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that masks are boolean. The interpreter rejects others only from Triton 3.9 on."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def masked_load(self: Any, pointers: Any, mask: Any, *others: Any, **named: Any) -> Any:
        assert mask.data.dtype == np.bool_, f"the mask of a load is {mask.data.dtype}, not bool"
        return load(self, pointers, mask, *others, **named)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        assert mask.data.dtype == np.bool_, f"the mask of a store is {mask.data.dtype}, not bool"
        return store(self, pointers, value, mask, *others)

    monkeypatch.setattr(builder, "create_masked_load", masked_load)
    monkeypatch.setattr(builder, "create_masked_store", masked_store)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with NaN, so that reads before the first write show up in the results."""
    original = Tensor.new_empty

    def new_empty(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        tensor = original(self, *arguments, **options)
        return tensor.fill_(torch.nan) if tensor.dtype.is_floating_point else tensor

    monkeypatch.setattr(Tensor, "new_empty", new_empty)


def assert_as_exact(ours: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> None:
    """Assert errors of at most twice plain PyTorch's at the same precision, plus a few ulps."""
    for result, same_precision, exact in zip(ours, plain, truth, strict=True):
        slack = 4 * 2**-23 * exact.abs().max() + 1e-9
        assert (result - exact).abs().max() <= 2 * (same_precision - exact).abs().max() + slack
