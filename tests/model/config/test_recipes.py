"""The published recipes: figures of docs/facts.md, Training."""

from __future__ import annotations

import pytest

from maskformer.config.load import load_config
from maskformer.config.recipes import CONFIG_FOLDER
from maskformer.config.schema import CocoPanopticConfig, FolderConfig

ADE20K = [
    "r50",
    "r101",
    "r101c",
    "swin_t",
    "swin_s",
    "swin_b",
    "swin_l",
    "per_pixel_r50",
    "per_pixel_plus_r50",
]
COCO = ["r50_6enc", "r101_6enc", "swin_t", "swin_s", "swin_b", "swin_l"]
NAMES = (
    [f"ade20k/{name}" for name in ADE20K]
    + [f"coco_panoptic/{name}" for name in COCO]
    + [f"ade20k_panoptic/{name}" for name in COCO[:2]]
)
TIMM = {
    "r50": "resnet50.tv_in1k",
    "r101": "resnet101.tv_in1k",
    "r101c": "resnet101s.gluon_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
    "swin_b": "swin_base_patch4_window12_384.ms_in22k",
    "swin_l": "swin_large_patch4_window12_384.ms_in22k",
}


@pytest.mark.parametrize("name", NAMES)
def test_what_all_share(name: str) -> None:
    config = load_config(name)
    model, criterion, train = config.model, config.criterion, config.train
    decoder = model.decoder
    assert (decoder.queries, decoder.channels, decoder.heads) == (100, 256, 8)
    assert (decoder.feedforward, decoder.layers, decoder.dropout) == (2048, 6, 0.1)
    assert (model.pixel_decoder.channels, model.pixel_decoder.mask_channels) == (256, 256)
    assert model.pixel_mean == (123.675, 116.28, 103.53)
    assert model.pixel_std == (58.395, 57.12, 57.375)
    assert (criterion.class_weight, criterion.mask_weight, criterion.dice_weight) == (1, 20, 1)
    assert (criterion.no_object_weight, criterion.alpha, criterion.gamma) == (0.1, 0.25, 2)
    assert train.clip_norm == 0.01
    assert train.group_by_aspect
    assert criterion.class_loss == "per_process"
    assert not config.eval.tta.from_original
    assert not config.eval.all_crowds
    assert model.backbone.pretrained
    assert model.backbone.frozen_norm


@pytest.mark.parametrize("name", NAMES)
def test_backbone_families(name: str) -> None:
    config = load_config(name)
    backbone, train = config.model.backbone, config.train
    short = name.partition("/")[2].removeprefix("per_pixel_").removeprefix("plus_")
    assert backbone.name == TIMM[short.removesuffix("_6enc")]
    swin = "swin" in short
    assert backbone.drop_path == (0.3 if swin else 0)
    assert backbone.multi_grid == ((1, 2, 4) if short == "r101c" else None)
    assert (train.lr, train.weight_decay) == ((6e-5, 1e-2) if swin else (1e-4, 1e-4))
    assert train.backbone_lr_multiplier == (1.0 if swin else 0.1)
    assert train.warmup_steps == (1500 if swin else 0)
    assert train.warmup_factor == 1e-6
    assert config.model.pixel_decoder.encoder_layers == (6 if short.endswith("6enc") else 0)


@pytest.mark.parametrize("name", ADE20K)
def test_ade20k(name: str) -> None:
    config = load_config(f"ade20k/{name}")
    side = 640 if name in ("swin_b", "swin_l") else 512
    data, train = config.data, config.train
    assert isinstance(data, FolderConfig)
    augmentation = data.augmentation
    assert augmentation.kind == "semantic"
    assert augmentation.short_sides == tuple(int(x * 0.1 * side) for x in range(5, 21))
    assert (augmentation.max_side, augmentation.crop) == (4 * side, (side, side))
    assert (data.test_short_side, data.test_max_side) == (side, 4 * side)
    assert augmentation.color
    assert augmentation.flip
    assert augmentation.pad_to_crop
    assert augmentation.single_category_max_area == 1
    assert not augmentation.keep_empty
    assert (data.label_offset, data.ignore) == (1, (0,))
    assert (train.steps, train.batch_size, train.evaluate_every) == (160_000, 16, 5000)
    assert (train.schedule, train.poly_power) == ("poly", 0.9)
    assert config.model.num_classes == 150
    assert config.model.size_divisibility == (0 if name.startswith("per_pixel") else 32)
    assert not config.eval.resize_logits
    expected = name.removesuffix("_r50") if name.startswith("per_pixel") else "maskformer"
    assert config.model.architecture == expected


def test_ade20k_class_names() -> None:
    names = (CONFIG_FOLDER / "ade20k/classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(names)) == 150
    assert [names[index] for index in (0, 2, 12, 149)] == ["wall", "sky", "person", "flag"]


@pytest.mark.parametrize("name", COCO)
def test_coco_panoptic(name: str) -> None:
    config = load_config(f"coco_panoptic/{name}")
    data, train = config.data, config.train
    assert isinstance(data, CocoPanopticConfig)
    augmentation = data.augmentation
    assert augmentation.kind == "panoptic"
    assert augmentation.short_sides == tuple(range(480, 801, 32))
    assert augmentation.max_side == (1000 if name == "swin_l" else 1333)
    assert augmentation.crop_short_sides == (400, 500, 600)
    assert augmentation.crop_range == (384, 600)
    assert (data.test_short_side, data.test_max_side) == (800, 1333)
    assert (train.steps, train.batch_size) == (554_400, 64)
    assert (train.schedule, train.milestones) == ("step", (369_600,))
    assert train.milestone_factor == 0.1
    assert config.model.num_classes == 133
    assert config.model.size_divisibility == 0
    assert config.model.decoder.enforce_input_projection == name.startswith("swin")
    assert config.eval.panoptic
    assert train.best_metric == "pq"
    assert config.eval.resize_logits
    assert config.eval.tta.short_sides == tuple(range(400, 1201, 100))
    assert config.eval.tta.max_side == 4000
    assert (config.eval.object_mask_threshold, config.eval.overlap_threshold) == (0.8, 0.8)


@pytest.mark.parametrize("name", COCO[:2])
def test_ade20k_panoptic(name: str) -> None:
    config = load_config(f"ade20k_panoptic/{name}")
    data, train = config.data, config.train
    assert isinstance(data, CocoPanopticConfig)
    augmentation = data.augmentation
    assert augmentation.kind == "semantic"
    assert augmentation.short_sides == tuple(int(x * 0.1 * 640) for x in range(5, 21))
    assert (augmentation.max_side, augmentation.crop) == (2560, (640, 640))
    assert augmentation.keep_empty
    assert str(data.val.semantic_labels) == "annotations_detectron2/validation"
    assert config.eval.tta.short_sides is None
    assert (train.steps, train.batch_size, train.schedule) == (720_000, 16, "poly")
    assert config.model.num_classes == 150
    assert config.model.size_divisibility == 32
    assert (config.eval.object_mask_threshold, config.eval.overlap_threshold) == (0.7, 0.8)
    assert train.best_metric == "pq"
