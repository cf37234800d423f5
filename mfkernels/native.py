"""Load the compiled libraries and Triton on import, and record why one is missing."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch


@dataclass(frozen=True)
class Part:
    """One part of the native code: where it is, or why it is missing."""

    name: str
    path: Path | None
    problem: str | None

    @property
    def usable(self) -> bool:
        return self.problem is None

    @property
    def note(self) -> str:
        """A remark about a usable part."""
        idle = self.name in ("cuda", "triton") and not torch.cuda.is_available()
        notes = ["idle: torch sees no GPU"] if idle else []
        if self.name == "cuda":
            notes += [f"for {', '.join(architectures)}"] if architectures else []
        elif self.name == "triton" and torch.version.hip is not None:
            notes.append("for AMD: uses no NVIDIA instructions; never tested on an AMD GPU")
        return "; ".join(notes)


def _build_record(folder: Path) -> dict[str, str]:
    """Read what the build recorded for each part: "" if it was built, otherwise why not."""
    try:
        record: dict[str, str] = json.loads((folder / "native_build.json").read_text())
    except FileNotFoundError:
        return {}
    return record


def load_libraries(folder: Path) -> dict[str, Part]:
    """Load the operator libraries that exist. Never raises: an error becomes `Part.problem`."""
    record = _build_record(folder)
    parts: dict[str, Part] = {}
    for name, needs in (("cpu", None), ("cuda", "cpu")):
        path = folder / f"_torch_{name}.so"
        if not path.exists():
            problem = record.get(name) or "not compiled (install the package to build it)"
            parts[name] = Part(name, None, problem)
        elif needs is not None and not parts[needs].usable:
            parts[name] = Part(name, path, f"needs the {needs} library: {parts[needs].problem}")
        else:
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                parts[name] = Part(name, path, f"cannot be loaded: {error}")
            else:
                parts[name] = Part(name, path, None)
    return parts


def load_numpy_module(folder: Path) -> tuple[ModuleType | None, Part]:
    # Search this folder only: the module of an editable installation elsewhere must not be loaded.
    specification = PathFinder.find_spec("mfkernels._numpy", [str(folder)])
    if specification is None or specification.loader is None:
        problem = _build_record(folder).get("numpy") or (
            "not compiled for this Python (install the package to build it)"
        )
        return None, Part("numpy", None, problem)
    path = Path(str(specification.origin))
    try:
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    except ImportError as error:
        return None, Part("numpy", path, f"cannot be loaded: {error}")
    return module, Part("numpy", path, None)


def triton_problem(cpu: Part) -> str | None:
    """Return why the Triton kernels cannot be used, or None. Does not import Triton."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "PyTorch is built without CUDA and without ROCm"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not cpu.usable:  # the cpu library defines the operators that the kernels implement
        return f"needs the cpu library: {cpu.problem}"
    return None


FOLDER = Path(__file__).resolve().parent
architectures: tuple[str, ...] = tuple(
    f"sm_{name.removesuffix('-real')}" if name.endswith("-real") else f"sm_{name} and later"
    for name in _build_record(FOLDER).get("cuda_architectures", "").split(";")
    if name
)
"""The GPU architectures that the CUDA library was built for."""
parts = load_libraries(FOLDER)
numpy_module, parts["numpy"] = load_numpy_module(FOLDER)
parts["triton"] = Part("triton", FOLDER / "triton", triton_problem(parts["cpu"]))
