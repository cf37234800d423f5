"""Registers, shared memory and spills of every CUDA kernel, from `ptxas -v`. Needs nvcc, no GPU.

python benchmarks/ptxas.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("sm_80", "sm_90")


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes on one architecture; memory in bytes."""

    source: str
    name: str
    architecture: str
    registers: int
    shared_memory: int
    stack: int
    spill_stores: int
    spill_loads: int


def compile_verbosely(source: Path) -> str:
    """The messages of nvcc and ptxas, all warnings switched on."""
    codes = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in ARCHITECTURES]
    command = [
        shutil.which("nvcc") or "nvcc",
        *("-c", str(source), "-o", "/dev/null", "-std=c++17", "-O3", *codes, "--threads=2"),
        *("-Xptxas=-v", "-Xcompiler=-Wall,-Wextra", "-DUSE_CUDA"),
        *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-I", str(ROOT / "csrc")),
        *("-isystem", str(Path(torch.__file__).parent / "include")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source}:\n{result.stderr}")
    return result.stdout + result.stderr


def demangle(name: str) -> str:
    tool = shutil.which("c++filt")
    if tool is None:
        return name
    full = subprocess.run([tool, name], capture_output=True, text=True, check=True).stdout.strip()
    short = full.replace("(anonymous namespace)::", "").removeprefix("void ").partition("(")
    return re.sub(r"\((?:bool|int)\)", "", short[0] if short[0].endswith(">") else full)


def parse(source: str, messages: str) -> list[Kernel]:
    """The kernels in the messages of `ptxas -v`."""
    kernels = []
    parts = re.split(r"Compiling entry function '(\w+)' for '(sm_\w+)'", messages)[1:]
    for name, architecture, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):

        def number(pattern: str, text: str = text) -> int:
            found = re.search(pattern, text)
            return int(found.group(1)) if found else 0

        kernels.append(
            Kernel(
                source,
                demangle(name),
                architecture,
                registers=number(r"Used (\d+) registers"),
                shared_memory=number(r"(\d+) bytes smem"),
                stack=number(r"(\d+) bytes stack frame"),
                spill_stores=number(r"(\d+) bytes spill stores"),
                spill_loads=number(r"(\d+) bytes spill loads"),
            )
        )
    return kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kernels = []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        kernels += parse(source.name, compile_verbosely(source))
    for kernel in kernels:
        print(
            f"{kernel.source} {kernel.architecture} {kernel.name}: {kernel.registers} registers, "
            f"{kernel.shared_memory} B static shared memory, {kernel.spill_stores} B spilled"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")


if __name__ == "__main__":
    main()
