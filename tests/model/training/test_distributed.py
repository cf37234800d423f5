"""Two processes must learn what one process with both their images learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.process_groups import free_port, join_processes, run_two
from helpers.recipes import TINY, tiny_recipe
from helpers.training import build_trainer, record_steps
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from maskformer.config.load import parse_config
from maskformer.config.schema import Config
from maskformer.data import (
    Batch,
    Normalize,
    TrainLoader,
    TrainTransform,
    build_dataset,
)
from maskformer.data.aspect import GroupedByAspect
from maskformer.evaluation.mask_precision import MaskPrecision
from maskformer.modeling.base import build_model
from maskformer.modeling.criterion import build_criterion
from maskformer.training.data import TrainingData
from maskformer.training.sharding import Shards, whole
from mfkernels import Instances, SegmentTargets

DECODER = {**TINY["model"]["decoder"], "dropout": 0.0}
BACKBONE = {**TINY["model"]["backbone"], "frozen_norm": True}
MODEL = {**TINY["model"], "num_classes": 9, "decoder": DECODER, "backbone": BACKBONE}
OFFICIAL = parse_config({**TINY, "model": MODEL})
CONFIG = parse_config({**TINY, "model": MODEL, "criterion": {"class_loss": "over_all"}})


def load_batch(rank: int, world_size: int, without_targets: tuple[int, ...]) -> Batch:
    """Four images, some of them with their segments taken away; this rank's share."""
    loader = TrainLoader(
        build_dataset(CONFIG.data, "train"),
        TrainTransform(CONFIG.data.augmentation),
        batch_size=4,
        seed=0,
        normalize=Normalize.from_config(CONFIG.model),
    )
    batch = next(iter(loader))
    label_map, labels = batch.targets.label_map, batch.targets.labels.split(batch.targets.counts)
    assert label_map is not None
    images = range(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    empty = torch.full_like(label_map[0], -1)
    targets = SegmentTargets.from_label_maps(
        [empty if i in without_targets else label_map[i] for i in images],
        [labels[i][:0] if i in without_targets else labels[i] for i in images],
    )
    return Batch(batch.pixel_values[list(images)], targets, tuple(batch.names[i] for i in images))


Gradients = dict[str, torch.Tensor]


def compute_gradients(
    rank: int,
    world_size: int,
    without_targets: tuple[int, ...],
    config: Config = CONFIG,
    *,
    shard: bool = False,
) -> Gradients:
    torch.manual_seed(0)
    model = build_model(config.model).double()
    if shard:
        Shards(model, torch.device("cpu"))
    forward = DistributedDataParallel(model) if world_size > 1 and not shard else model
    batch = load_batch(rank, world_size, without_targets)
    criterion = build_criterion(config)
    criterion.total(criterion(forward(batch.pixel_values.double()), batch.targets)).backward()
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def compute_official_gradients(without_targets: tuple[int, ...]) -> Gradients:
    """Those of two processes in one: the mean of both means of the class loss, and the mask losses
    of all images over the number of all their segments.
    """
    torch.manual_seed(0)
    model = build_model(OFFICIAL.model).double()
    criterion = build_criterion(OFFICIAL)
    whole = load_batch(0, 1, without_targets)
    losses = criterion(model(whole.pixel_values.double()), whole.targets)
    of_masks = {name: loss for name, loss in losses.items() if not name.startswith("loss_ce")}
    criterion.total(of_masks).backward()
    for rank in range(2):
        half = load_batch(rank, 2, without_targets)
        losses = criterion(model(half.pixel_values.double()), half.targets)
        of_classes = [loss for name, loss in losses.items() if name.startswith("loss_ce")]
        (torch.stack(of_classes).sum() / 2).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


WITHOUT_TARGETS = ((), (1,), (2, 3), (0, 1, 2, 3))


def gradients_worker(rank: int, port: int, folder: Path) -> None:
    join_processes(rank, 2, port)
    dist.init_process_group("gloo")
    gradients = [compute_gradients(rank, 2, images) for images in WITHOUT_TARGETS]
    official = [compute_gradients(rank, 2, images, OFFICIAL) for images in WITHOUT_TARGETS]
    sharded = [compute_gradients(rank, 2, images, shard=True) for images in WITHOUT_TARGETS]
    torch.save((gradients, official, sharded), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    """Also with an image, a whole process, and all processes without a segment: those of one
    process with `class_loss: over_all`, also where the model is sharded, and else the official
    ones.
    """
    run_two(gradients_worker, free_port(), tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, without_targets in enumerate(WITHOUT_TARGETS):
        alone = compute_gradients(0, 1, without_targets)
        official = compute_official_gradients(without_targets)
        for rank in ranks:
            for found, expected in zip(rank, (alone, official, alone), strict=True):
                assert found[case].keys() == expected.keys()
                for name, gradient in expected.items():
                    torch.testing.assert_close(found[case][name], gradient, rtol=1e-6, atol=1e-12)


def mask_precision(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Mask AP of detections that are right for every second object, on this process's images."""
    dataset = build_dataset(CONFIG.data, "val")
    precision = MaskPrecision(dataset.info.num_classes, dataset.info.things)
    for index in range(rank, len(dataset), world_size):
        sample = dataset[index]
        count = len(sample.labels)
        masks = sample.segments == torch.arange(count)[:, None, None]
        labels = sample.labels + torch.arange(count) % 2 * 4
        scores = torch.linspace(0.1 + index / 10, 0.9, count)
        precision.update(Instances(masks, labels, scores, torch.zeros(count, 4)), sample)
    return precision.compute()


def find_shapes(data: TrainingData, folder: Path, rank: int) -> list[bool]:
    """Those of two images that only the first process can read."""
    files = [(folder / f"{rank}_{kind}.png",) for kind in ("wide", "high")]
    if rank == 0:
        for (file,), size in zip(files, ((9, 5), (5, 9)), strict=True):
            Image.new("RGB", size).save(file)
    data.train.files = files  # type: ignore[attr-defined]
    train = data.config.train.model_copy(update={"batch_size": 4})
    data.config = data.config.model_copy(update={"train": train})
    grouped = data._grouped()
    assert isinstance(grouped, GroupedByAspect)
    return list(grouped.landscape)


def trainer_worker(rank: int, port: int, run: Path) -> None:
    join_processes(rank, 2, port)
    trainer = build_trainer(CONFIG, run, cpu=True)
    metrics = trainer.fit()
    if rank == 0:
        torch.save(metrics, run / "returned.pt")
    torch.save(mask_precision(rank, 2), run / f"precision{rank}.pt")
    torch.save(find_shapes(trainer.parts.data, run.parent, rank), run / f"shapes{rank}.pt")
    dist.destroy_process_group()


def one_image_each(kind: str) -> Config:
    """Two images a step; in the panoptic recipe of different sizes, and with an encoder."""
    values = OFFICIAL.model_dump(mode="json")
    values["train"] |= {"clip_norm": 0.01, "steps": 3, "trackers": []}
    values["data"]["val_images"] = 1
    values["eval"] |= {"panoptic": False, "pictures": 0}
    if kind == "panoptic":
        values["model"]["size_divisibility"] = 0
        values["model"]["pixel_decoder"]["encoder_layers"] = 1
        values["data"]["augmentation"] = {
            "kind": "panoptic",
            "short_sides": [48, 64, 80],
            "max_side": 90,
            "crop_short_sides": [64, 72],
            "crop_range": [40, 60],
        }
    return parse_config(values)


def steps_worker(rank: int, port: int, folder: Path) -> None:
    join_processes(rank, 2, port)
    for kind in ("semantic", "panoptic"):
        trainer = build_trainer(one_image_each(kind), folder / kind, cpu=True)
        torch.save(record_steps(trainer), folder / f"{kind}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_thread")
def test_one_process_with_one_image_at_a_time_follows_two(tmp_path: Path) -> None:
    """`accumulate: 2` takes the steps of two processes of one image each, and logs their losses, to
    rounding.
    """
    run_two(steps_worker, free_port(), tmp_path)
    for kind in ("semantic", "panoptic"):
        config = one_image_each(kind)
        train = config.train.model_copy(update={"accumulate": 2})
        config = config.model_copy(update={"train": train})
        alone = record_steps(build_trainer(config, tmp_path / f"{kind}-one", cpu=True))
        ranks = [torch.load(tmp_path / f"{kind}{rank}.pt") for rank in range(2)]
        assert len(alone) == config.train.steps
        for step, first, second in zip(alone, *ranks, strict=True):
            assert step["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-6)
            assert first["bad_costs"] == second["bad_costs"] == step["bad_costs"]
            for name in ("loss", "loss_ce", "loss_mask", "loss_dice"):
                assert first[name] == second[name]
                assert step[name] == pytest.approx(first[name], rel=1e-6)


def test_training_with_two_processes_equals_one(tmp_path: Path) -> None:
    run_two(trainer_worker, free_port(), tmp_path / "two")
    alone = build_trainer(CONFIG, tmp_path / "one", cpu=True).fit()
    together = torch.load(tmp_path / "two" / "returned.pt")
    assert together["step"] == alone["step"]
    assert together["miou"] == pytest.approx(alone["miou"], rel=0.02)
    assert together["pacc"] == pytest.approx(alone["pacc"], rel=0.02)
    expected = mask_precision(0, 1)
    assert 0 < expected["ap"] < 1
    for rank in range(2):
        found = torch.load(tmp_path / "two" / f"precision{rank}.pt")
        torch.testing.assert_close(found, expected, equal_nan=True)
        shapes = torch.load(tmp_path / "two" / f"shapes{rank}.pt", weights_only=False)
        assert shapes == [True, False]


def statistics_worker(rank: int, port: int, folder: Path) -> None:
    join_processes(rank, 2, port)
    trainer = build_trainer(tiny_recipe(ema=0.9), folder / "run", cpu=True)
    trainer.fit()
    torch.save(dict(trainer.evaluated_model.named_buffers()), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_evaluate_with_the_same_statistics(tmp_path: Path) -> None:
    """BatchNorm's are those of the checkpoint, though each process saw other images."""
    run_two(statistics_worker, free_port(), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert any(name.endswith("running_mean") for name in first)
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=0, atol=0)
