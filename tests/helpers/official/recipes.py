"""The settings of the official configurations, by recipe key; source: docs/facts.md, Training."""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

OFFICIAL = {
    "ade20k-150/maskformer_R50_bs16_160k": "ade20k/r50",
    "ade20k-150/maskformer_R101_bs16_160k": "ade20k/r101",
    "ade20k-150/maskformer_R101c_bs16_160k": "ade20k/r101c",
    "ade20k-150/per_pixel_baseline_R50_bs16_160k": "ade20k/per_pixel_r50",
    "ade20k-150/per_pixel_baseline_plus_R50_bs16_160k": "ade20k/per_pixel_plus_r50",
    "ade20k-150/swin/maskformer_swin_tiny_bs16_160k": "ade20k/swin_t",
    "ade20k-150/swin/maskformer_swin_small_bs16_160k": "ade20k/swin_s",
    "ade20k-150/swin/maskformer_swin_base_IN21k_384_bs16_160k_res640": "ade20k/swin_b",
    "ade20k-150/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640": "ade20k/swin_l",
    "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k": "ade20k_panoptic/r50_6enc",
    "ade20k-150-panoptic/maskformer_panoptic_R101_bs16_720k": "ade20k_panoptic/r101_6enc",
    "ade20k-full-847/maskformer_R50_bs16_200k": "ade20k_full/r50",
    "ade20k-full-847/maskformer_R101_bs16_200k": "ade20k_full/r101",
    "ade20k-full-847/maskformer_R101c_bs16_200k": "ade20k_full/r101c",
    "ade20k-full-847/per_pixel_baseline_R50_bs16_200k": "ade20k_full/per_pixel_r50",
    "ade20k-full-847/per_pixel_baseline_plus_R50_bs16_200k": "ade20k_full/per_pixel_plus_r50",
    "cityscapes-19/maskformer_R101_bs16_90k": "cityscapes/r101",
    "cityscapes-19/maskformer_R101c_bs16_90k": "cityscapes/r101c",
    "coco-panoptic/maskformer_panoptic_R50_bs64_554k": "coco_panoptic/r50_6enc",
    "coco-panoptic/maskformer_panoptic_R101_bs64_554k": "coco_panoptic/r101_6enc",
    "coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k": "coco_panoptic/swin_t",
    "coco-panoptic/swin/maskformer_panoptic_swin_small_bs64_554k": "coco_panoptic/swin_s",
    "coco-panoptic/swin/maskformer_panoptic_swin_base_IN21k_384_bs64_554k": "coco_panoptic/swin_b",
    "coco-panoptic/swin/maskformer_panoptic_swin_large_IN21k_384_bs64_554k": "coco_panoptic/swin_l",
    "coco-stuff-10k-171/maskformer_R50_bs32_60k": "coco_stuff_10k/r50",
    "coco-stuff-10k-171/maskformer_R101_bs32_60k": "coco_stuff_10k/r101",
    "coco-stuff-10k-171/maskformer_R101c_bs32_60k": "coco_stuff_10k/r101c",
    "coco-stuff-10k-171/per_pixel_baseline_R50_bs32_60k": "coco_stuff_10k/per_pixel_r50",
    "coco-stuff-10k-171/per_pixel_baseline_plus_R50_bs32_60k": "coco_stuff_10k/per_pixel_plus_r50",
    "mapillary-vistas-65/maskformer_R50_bs16_300k": "mapillary/r50",
}
NOT_RELEASED = [
    "ade20k/swin_b_in1k",
    "cityscapes/per_pixel_r101",
    "cityscapes/per_pixel_plus_r101",
    "coco_panoptic/swin_b_in1k",
]
"""Models in the paper's tables without a released configuration; their settings are taken from
similar models.
"""

ALL: Values = {
    "model.backbone.pretrained": True,
    "model.backbone.weights": None,
    "model.backbone.frozen_norm": True,
    "model.pixel_decoder.channels": 256,
    "model.pixel_decoder.mask_channels": 256,
    "model.pixel_decoder.groups": 32,
    "model.decoder.queries": 100,
    "model.decoder.channels": 256,
    "model.decoder.heads": 8,
    "model.decoder.feedforward": 2048,
    "model.decoder.layers": 6,
    "model.decoder.dropout": 0.1,
    "model.decoder.mask_padding": False,
    "model.pixel_mean": [123.675, 116.28, 103.53],
    "model.pixel_std": [58.395, 57.12, 57.375],
    "criterion.class_weight": 1,
    "criterion.mask_weight": 20,
    "criterion.dice_weight": 1,
    "criterion.no_object_weight": 0.1,
    "criterion.alpha": 0.25,
    "criterion.gamma": 2,
    "criterion.class_weights": None,
    "criterion.class_loss": "per_process",
    "criterion.matching": "bipartite",
    "data.augmentation.flip": True,
    "data.channels": 3,
    "data.value_range": None,
    "data.percentiles": None,
    "data.exif_orientation": None,
    "train.group_by_aspect": True,
    "train.epochs": None,
    "train.accumulate": 1,
    "train.clip_norm": 0.01,
    "train.poly_power": 0.9,
    "train.milestone_factor": 0.1,
    "train.freeze": [],
    "train.ema": None,
    "train.precision": "fp32",
    "eval.precision": "fp32",
    "train.checkpoint_every": 5000,
    "train.patience": None,
    "eval.semantic": True,
    "eval.all_crowds": False,
    "eval.tta.flip": True,
    "eval.tta.from_original": False,
}

RESNET: Values = {
    "model.backbone.drop_path": 0,
    "model.backbone.multi_grid": None,
    "model.decoder.enforce_input_projection": False,
    "train.lr": 1e-4,
    "train.weight_decay": 1e-4,
    "train.backbone_lr_multiplier": 0.1,
    "train.warmup_steps": 0,
    "train.warmup_factor": 1e-6,  # no effect without warm-up steps
}
SWIN: Values = {
    "model.backbone.drop_path": 0.3,
    "model.backbone.multi_grid": None,
    "model.decoder.enforce_input_projection": False,
    "train.lr": 6e-5,
    "train.weight_decay": 1e-2,
    "train.backbone_lr_multiplier": 1,
    "train.warmup_steps": 1500,
    "train.warmup_factor": 1e-6,
}
BACKBONE: dict[str, Values] = {
    "r50": RESNET | {"model.backbone.name": "resnet50.tv_in1k"},
    "r101": RESNET | {"model.backbone.name": "resnet101.tv_in1k"},
    "r101c": RESNET
    | {"model.backbone.name": "resnet101s.gluon_in1k", "model.backbone.multi_grid": [1, 2, 4]},
    "swin_t": SWIN | {"model.backbone.name": "swin_tiny_patch4_window7_224.ms_in1k"},
    "swin_s": SWIN | {"model.backbone.name": "swin_small_patch4_window7_224.ms_in1k"},
    "swin_b": SWIN | {"model.backbone.name": "swin_base_patch4_window12_384.ms_in22k"},
    "swin_b_in1k": SWIN | {"model.backbone.name": "swin_base_patch4_window12_384.ms_in1k"},
    "swin_l": SWIN | {"model.backbone.name": "swin_large_patch4_window12_384.ms_in22k"},
}


def short_sides(side: int, last: int) -> list[int]:
    """The official list: 5 to `last` tenths of a side, truncated to whole pixels."""
    return [int(x * 0.1 * side) for x in range(5, last + 1)]


def semantic(side: int, last: int, crop: list[int]) -> Values:
    """Augmentation and test settings of all data sets but COCO panoptic; sizes refer to `side`."""
    return {
        "data.augmentation.kind": "semantic",
        "data.augmentation.short_sides": short_sides(side, last),
        "data.augmentation.max_side": 4 * side,
        "data.augmentation.crop": crop,
        "data.augmentation.single_category_max_area": 1,
        "data.augmentation.color": True,
        "data.augmentation.pad_to_crop": True,
        "data.augmentation.label_resize": "floor",
        "data.augmentation.keep_empty": False,
        "data.test_short_side": side,
        "data.test_max_side": 4 * side,
        "train.schedule": "poly",
        "train.milestones": [],
    }


SEMANTIC: Values = {
    "model.size_divisibility": 32,
    "train.batch_size": 16,
    "train.workers": 4,
    "train.evaluate_every": 5000,
    "train.best_metric": None,
    "eval.panoptic": False,
    "eval.object_mask_threshold": 0.8,  # these two have no effect without panoptic results
    "eval.overlap_threshold": 0.8,
    "eval.resize_logits": False,
    "data.format": "folder",
    "data.image_suffix": ["*"],
    "data.label_suffix": ".png",
    "data.label_offset": 0,
    "data.ignore": [255],
    "data.things": [],
    "data.label_names": None,
}
PANOPTIC: Values = {
    "train.best_metric": "pq",
    "train.workers": 4,
    "eval.panoptic": True,
    "eval.overlap_threshold": 0.8,
    "eval.resize_logits": True,
    "data.format": "coco_panoptic",
    "data.categories": None,
    "data.label_map": None,
}


def views(short_sides: list[int], max_side: int) -> Values:
    return {"eval.tta.short_sides": short_sides, "eval.tta.max_side": max_side}


SIX = [0.5, 0.75, 1, 1.25, 1.5, 1.75]
SCALED: Values = {
    "eval.tta.scales": SIX,
    "eval.tta.short_sides": None,
    "eval.tta.max_side": None,
}
"""Views relative to the test size, which gives the official sizes on ADE20K
(test_the_official_sizes).
"""
UNNAMED = views([*range(400, 1201, 100)], 4000)
"""Detectron2's default views, for configurations that set none."""

SET: dict[str, Values] = {
    "ade20k": SEMANTIC
    | semantic(512, 20, [512, 512])
    | SCALED
    | {
        "model.num_classes": 150,
        "train.steps": 160_000,
        "data.root": "datasets/ADEChallengeData2016",
        "data.train.images": "images/training",
        "data.train.labels": "annotations/training",
        "data.val.images": "images/validation",
        "data.val.labels": "annotations/validation",
        "data.label_offset": 1,
        "data.ignore": [0],
    },
    "ade20k_full": SEMANTIC
    | semantic(512, 20, [512, 512])
    | UNNAMED
    | {
        "model.num_classes": 847,
        "train.steps": 200_000,
        "data.root": "datasets/ADE20K_2021_17_01",
        "data.train.images": "images_detectron2/training",
        "data.train.labels": "annotations_detectron2/training",
        "data.val.images": "images_detectron2/validation",
        "data.val.labels": "annotations_detectron2/validation",
        "data.label_suffix": ".tif",
        "data.ignore": [65535],
    },
    "cityscapes": SEMANTIC
    | semantic(1024, 20, [512, 1024])
    | views([512, 768, 1024, 1280, 1536, 1792], 4096)
    | {
        "model.num_classes": 19,
        "train.steps": 90_000,
        "data.root": "datasets/cityscapes",
        "data.train.images": "leftImg8bit/train",
        "data.train.labels": "gtFine/train",
        "data.val.images": "leftImg8bit/val",
        "data.val.labels": "gtFine/val",
        "data.image_suffix": ["_leftImg8bit.png"],
        "data.label_suffix": "_gtFine_labelIds.png",
        "data.augmentation.pad_to_crop": False,
        "data.test_max_side": 2048,
        "eval.cityscapes": True,  # the official scripts always compute these metrics
    },
    "coco_stuff_10k": SEMANTIC
    | semantic(640, 15, [640, 640])
    | views([320, 480, 640, 800, 960, 1120], 4480)
    | {
        "model.num_classes": 171,
        "train.steps": 60_000,
        "train.batch_size": 32,
        "data.root": "datasets/coco/coco_stuff_10k",
        "data.train.images": "images",
        "data.train.labels": "annotations",
        "data.train.list": "imageLists/train.txt",
        "data.val.images": "images",
        "data.val.labels": "annotations",
        "data.val.list": "imageLists/test.txt",
        "data.label_suffix": ".mat",
        "data.ignore": [0],
    },
    "mapillary": SEMANTIC
    | semantic(2048, 20, [1280, 1280])
    | SCALED
    | {
        "model.num_classes": 65,
        "train.steps": 300_000,
        "train.workers": 10,
        "data.root": "datasets/mapillary_vistas",
        "data.train.images": "training/images",
        "data.train.labels": "training/labels",
        "data.val.images": "validation/images",
        "data.val.labels": "validation/labels",
        "data.ignore": [65],
        "data.test_max_side": 2048,
        "eval.tta.scales": [0.5, 1, 1.5],  # from the paper; the configuration sets none
    },
    "ade20k_panoptic": PANOPTIC
    | semantic(640, 20, [640, 640])
    | SCALED
    | {
        "model.num_classes": 150,
        "model.size_divisibility": 32,
        "train.steps": 720_000,
        "train.batch_size": 16,
        "train.evaluate_every": 720_000,
        "eval.object_mask_threshold": 0.7,
        "data.root": "datasets/ADEChallengeData2016",
        "data.train.images": "images/training",
        "data.train.panoptic": "ade20k_panoptic_train",
        "data.train.annotations": "ade20k_panoptic_train.json",
        "data.val.images": "images/validation",
        "data.val.panoptic": "ade20k_panoptic_val",
        "data.val.annotations": "ade20k_panoptic_val.json",
        "data.val.semantic_labels": "annotations_detectron2/validation",
        "data.augmentation.label_resize": "center",
        "data.augmentation.keep_empty": True,
    },
    "coco_panoptic": PANOPTIC
    | UNNAMED
    | {
        "model.num_classes": 133,
        "model.size_divisibility": 0,
        "train.steps": 554_400,
        "train.batch_size": 64,
        "train.evaluate_every": 554_400,
        "train.schedule": "step",
        "train.milestones": [369_600],
        "eval.object_mask_threshold": 0.8,
        "data.root": "datasets/coco",
        "data.train.images": "train2017",
        "data.train.panoptic": "panoptic_train2017",
        "data.train.annotations": "annotations/panoptic_train2017.json",
        "data.val.images": "val2017",
        "data.val.panoptic": "panoptic_val2017",
        "data.val.annotations": "annotations/panoptic_val2017.json",
        "data.augmentation.kind": "panoptic",
        "data.augmentation.short_sides": [*range(480, 801, 32)],
        "data.augmentation.max_side": 1333,
        "data.augmentation.label_resize": "center",
        "data.augmentation.crop_short_sides": [400, 500, 600],
        "data.augmentation.crop_range": [384, 600],
        "data.augmentation.keep_empty": True,
        "data.test_short_side": 800,
        "data.test_max_side": 1333,
    },
}
HEAD: dict[str, Values] = {
    "": {"model.architecture": "maskformer", "model.pixel_decoder.encoder_layers": 0},
    "_6enc": {"model.architecture": "maskformer", "model.pixel_decoder.encoder_layers": 6},
    "per_pixel_": {
        "model.architecture": "per_pixel",
        "model.pixel_decoder.encoder_layers": 0,
        "model.size_divisibility": 0,
    },
    "per_pixel_plus_": {
        "model.architecture": "per_pixel_plus",
        "model.pixel_decoder.encoder_layers": 0,
        "model.size_divisibility": 0,
    },
}
ENFORCED: Values = {"model.decoder.enforce_input_projection": True}
EXCEPTION: dict[str, Values] = {
    "ade20k/swin_b": semantic(640, 20, [640, 640]),
    "ade20k/swin_b_in1k": semantic(640, 20, [640, 640]),
    "ade20k/swin_l": semantic(640, 20, [640, 640]),
    "coco_panoptic/swin_t": ENFORCED,
    "coco_panoptic/swin_s": ENFORCED,
    "coco_panoptic/swin_b": ENFORCED,
    "coco_panoptic/swin_b_in1k": ENFORCED,
    "coco_panoptic/swin_l": ENFORCED | {"data.augmentation.max_side": 1000},
}


def official_values(recipe: str) -> Values:
    """All settings of the official configuration for a recipe's name, by dotted keys."""
    folder, _, name = recipe.partition("/")
    backbone = name.removeprefix("per_pixel_").removeprefix("plus_").removesuffix("_6enc")
    head = name.replace(backbone, "")
    parts = (ALL, SET[folder], BACKBONE[backbone], HEAD[head], EXCEPTION.get(recipe, {}))
    return {key: value for part in parts for key, value in part.items()}
