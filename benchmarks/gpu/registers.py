"""List registers and memory of every CUDA kernel in the built library. Needs no GPU.

python benchmarks/gpu/registers.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from mfkernels import backend


@dataclass(frozen=True)
class Kernel:
    """Resource usage of one kernel on one architecture.

    Registers, stack and local memory are per thread, shared memory per block; memory in bytes.
    """

    name: str
    architecture: str
    registers: int
    shared_memory: int
    stack: int
    local_memory: int
    """Includes register spills."""


def kernels(library: Path) -> list[Kernel]:
    """Read the library with the `cuobjdump` bundled with Triton, or else the CUDA toolkit's."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool) if tool.exists() else "cuobjdump", "--dump-resource-usage", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for part in re.split(r"^arch = ", text, flags=re.M)[1:]:
        for name, registers, stack, shared, local in re.findall(
            r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", part
        ):
            sizes = (int(registers), int(shared), int(stack), int(local))
            found.append(Kernel(demangle(name), part.partition("\n")[0], *sizes))
    return found


def demangle(name: str) -> str:
    tool = shutil.which("c++filt")
    if tool is None:
        return name
    full = subprocess.run([tool, name], capture_output=True, text=True, check=True).stdout.strip()
    short = full.replace("(anonymous namespace)::", "").removeprefix("void ").partition("(")
    return re.sub(r"\((?:bool|int)\)", "", short[0] if short[0].endswith(">") else full)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    library = backend.part("cuda").path
    found = kernels(library)
    for kernel in found:
        print(
            f"{kernel.architecture} {kernel.name}: {kernel.registers} registers, "
            f"{kernel.shared_memory} B shared and {kernel.local_memory} B local memory"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(k) for k in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
