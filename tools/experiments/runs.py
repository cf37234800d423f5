"""Train one variant with one seed through the command line, and store its results."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from plan import BASELINE, GENERAL, SETTING, VARIANTS

from maskformer.data import build_dataset
from maskformer.evaluation.semantic_quality import SemanticQuality
from maskformer.inference.segmentation import Segmentation
from maskformer.modeling.maskformer import MaskFormer
from maskformer.output.output_folder import METRICS
from maskformer.predictor import Predictor
from maskformer.system.writing import write_text
from maskformer.training.checkpoints.contents import load_recipe, resolve_checkpoint
from maskformer.weights.locate import CHECKPOINTS, find_checkpoint


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        variant: a name from `VARIANTS`.
        overrides: values that override the setting in every variant.
    """

    variant: str
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def values(self) -> list[str]:
        return [*self.overrides, *VARIANTS[self.variant], f"train.seed={self.seed}"]

    def file(self, results: Path, variant: str | None = None) -> Path:
        return results / (variant or self.variant) / f"seed_{self.seed}.json"

    def setting(self) -> dict[str, Any]:
        """What was run, as stored with the result: a result of another setting is not used."""
        return {"setting": yaml.safe_load(SETTING.read_text()), "overrides": self.values}

    def is_done(self, results: Path) -> bool:
        wanted = [self.variant, GENERAL] if self.variant == BASELINE else [self.variant]
        return all(
            (file := self.file(results, name)).is_file()
            and json.loads(file.read_text()).items() >= self.setting().items()
            for name in wanted
        )


@dataclass(frozen=True)
class Cost:
    """The cost of an uninterrupted training, including its start and its evaluation."""

    seconds: float
    cpu_seconds: float


def carry_out(run: Run, data: Path, folder: Path, results: Path) -> None:
    """Train in `folder` and write the results; an interrupted training is resumed.

    Raises:
        subprocess.CalledProcessError: `maskformer train` failed; its output says why.
    """
    cost = _train(run, data, folder)
    figures = json.loads((folder / METRICS).read_text())
    if run.variant == BASELINE:
        _write(run, results, GENERAL, {"miou": miou_of_best_queries(folder, data)}, None)
    _write(run, results, run.variant, figures, cost)
    shutil.rmtree(folder / CHECKPOINTS)  # 20 runs would take gigabytes


def _train(run: Run, data: Path, folder: Path) -> Cost | None:
    note = folder.with_suffix(".json")
    setting = json.dumps(run.setting())
    same = note.is_file() and note.read_text() == setting
    begun = same and find_checkpoint(folder / CHECKPOINTS) is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, setting)
    command = [sys.executable, "-m", "maskformer", "train", "--config", str(SETTING)]
    command += ["--output", str(folder), "--resume" if begun else "--overwrite"]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, f"data.root={data}", *run.values], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return None if begun else Cost(round(time.monotonic() - start, 1), round(cpu, 1))


def miou_of_best_queries(folder: Path, data: Path) -> float:
    """mIoU of general inference (paper §3.4) without its thresholds: argmax over the queries."""
    checkpoint = resolve_checkpoint(folder)
    everything = ["eval.object_mask_threshold=0", "eval.overlap_threshold=0"]
    config = load_recipe(checkpoint, [f"data.root={data}", *everything])
    dataset = build_dataset(config.data, "val")
    model, info = MaskFormer.from_pretrained(checkpoint), dataset.info
    predictor = Predictor(model, config, info, mode="panoptic")
    quality = SemanticQuality(info.num_classes)
    for index in range(len(dataset)):
        sample = dataset[index]
        [prediction] = predictor.predict([predictor.prepare(sample)])
        quality.update(class_map(prediction.segmentation()), sample.semantic_map())
    return float(quality.compute()["miou"])


def class_map(segmentation: Segmentation) -> Any:
    """The class of every pixel, `[H, W]`; -1 is void."""
    segments, labels = segmentation.segments, segmentation.labels
    if len(labels) == 0:
        return segments
    return labels[segments.clamp(min=0)].where(segments >= 0, -1)


def _write(
    run: Run, results: Path, variant: str, figures: dict[str, Any], cost: Cost | None
) -> None:
    file = run.file(results, variant)
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "variant": variant,
        "seed": run.seed,
        **run.setting(),
        "cost": None if cost is None else asdict(cost),
        "figures": figures,
    }
    write_text(file, json.dumps(record, indent=1) + "\n")
