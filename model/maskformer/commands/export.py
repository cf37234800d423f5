"""`maskformer export`."""

from __future__ import annotations

from pathlib import Path

from maskformer.config.choices import ExportedOutputs
from maskformer.export import export
from maskformer.output.console import Progress


def run(
    source: str,
    target: Path,
    outputs: ExportedOutputs,
    size: tuple[int, int] | None,
    *,
    overwrite: bool,
) -> None:
    """Export a model, and report whether ONNX Runtime and PyTorch agree."""
    progress = Progress()
    progress.print("Exporting the model, which may take a minute.")
    made = export(source, target, outputs=outputs, size=size, overwrite=overwrite)
    what = "pixels" if outputs == "classes" else "logits"
    check = (
        "not checked: onnxruntime is not installed"
        if made.agreement is None
        else f"ONNX Runtime and PyTorch agree on {100 * made.agreement:.3f} % of the {what}"
    )
    progress.print(f"{made.file} has {made.megabytes:.1f} MB; {check}.")
