"""Records launches of Triton kernels and compiles them, as for a GPU, but without having one."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from helpers.repository import ROOT
from torch import Tensor
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from mfkernels.triton import devices, launcher
from mfkernels.triton.devices import Gpu

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

SPILLED_ELSEWHERE = 64
"""Bytes that a kernel may spill with a Triton other than the pinned one."""

SPILLED_WHERE_FASTER: dict[tuple[str, str, torch.dtype | None], int] = {
    ("sm_90", "logits_kernel", torch.float32): 256,
    ("sm_90", "grad_embed_kernel", torch.float32): 352,
}
"""Bytes that these kernels may spill with any Triton, by the dtype of the features: the tiles that
are fastest on an H200 spill that much (`benchmarks/NOTES.md`, round 6)."""

PINS = ROOT / "requirements" / "py311.txt"


def is_pinned() -> bool:
    """Whether Triton is the pinned version, with which no kernel other than those may spill."""
    found = re.search(r"^triton==(\S+)", PINS.read_text(), re.MULTILINE)
    assert found is not None, f"{PINS} does not pin Triton"
    return triton.__version__ == found[1]


TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]
    """Compiler options. Constants of the kernel (`constexpr`) are among its arguments instead."""

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record the launches inside the block. Nothing runs, so tensors may be on any device."""
    launches: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...], /, **given: Any) -> None:
        arguments = {name: given.pop(name) for name in kernel.arg_names}
        launches.append(Launch(kernel, grid, arguments, given))

    original, launcher.start = launcher.start, record
    try:
        yield launches
    finally:
        launcher.start = original


@contextmanager
def made_for(architecture: str) -> Iterator[Gpu]:
    """Choose kernels and tiles for this GPU inside the block."""
    with mock.patch.object(devices, "assumed", devices.KNOWN[architecture]) as gpu:
        yield gpu


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled: int
    """Bytes of local memory per thread (scratch memory on AMD); 0 without register spills."""
    shared: int
    """Bytes of shared memory per program (thread block)."""
    assembly: str
    """PTX, or AMD's assembly."""
    binary: bytes

    @property
    def tensor_cores(self) -> bool:
        pattern = r"\b((mma|wgmma\.mma_async)\.sync|tcgen05\.mma|v_mfma)"
        return re.search(pattern, self.assembly) is not None


def compile_launch(launch: Launch, architecture: str) -> Compiled:
    """Compile a launch with the specialisation that Triton's JIT would choose for its arguments."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        signature[parameter.name], known = specialised(value)
        if parameter.do_not_specialize and signature[parameter.name] in ("constexpr", "i32"):
            signature[parameter.name], known = "i32", None
        for path, what in _leaves(known, (index,)):
            if what == "D":
                attributes[path] = [["tt.divisibility", 16]]
            elif what not in ("", None):
                constants[path] = what
    source = ASTSource(launch.kernel, signature, constants, attributes)
    if architecture.startswith("gfx"):
        target = GPUTarget("hip", architecture, 64)
    else:
        target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        return Compiled(*_usage_on_amd(text), shared, text, compiled.asm["hsaco"])
    binary = compiled.asm["cubin"]
    return Compiled(*_resource_usage(binary), shared, compiled.asm["ptx"], binary)


def specialised(value: Any) -> tuple[Any, Any]:
    """An argument's type, and what the compiler may assume: a constant, or "D" if 16 divides it.

    For a named tuple, two named tuples of these.
    """
    if isinstance(value, tuple):
        types, known = zip(*map(specialised, value), strict=True)
        return type(value)(*types), type(value)(*known)
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype], "D"
    if isinstance(value, float):
        return "fp32", None
    if value is None or value == 1:
        return "constexpr", value
    return "i32" if -(2**31) <= value < 2**31 else "i64", "" if value % 16 else "D"


def specialised_by_triton(value: Any) -> tuple[Any, Any]:
    """The same as `specialised`, from Triton itself, which reads tensor addresses (0 on meta)."""
    types, known = native_specialize_impl(CUDABackend, value, False, True, True)
    return types, known


def variant_of(launch: Launch) -> str:
    """A launch's key in Triton's cache of compiled kernels: its types, constants and options."""
    found: list[Any] = [launch.name, sorted(launch.options.items())]
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            found.append(value)
            continue
        flags = (not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment)
        found.append(native_specialize_impl(CUDABackend, value, parameter.is_const, *flags))
    return repr(found)


def _leaves(value: Any, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(value, tuple):
        for index, field in enumerate(value):
            yield from _leaves(field, (*path, index))
    else:
        yield path, value


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory (0 without spills), both per thread."""
    text = cuobjdump(cubin, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2]) + int(found[3])


def _usage_on_amd(assembly: str) -> tuple[int, int]:
    """The same for AMD: vector registers and bytes of scratch memory, from the assembly."""

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        assert found is not None, name
        return int(found[1])

    return number("vgpr_count"), number("private_segment_fixed_size")


def cuobjdump(cubin: bytes, option: str) -> str:
    """The output of `cuobjdump`, from Triton's bundle or the PATH."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    program = str(tool) if tool.exists() else shutil.which("cuobjdump")
    assert program is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        return subprocess.run(
            [program, option, file.name], check=True, capture_output=True, text=True
        ).stdout
