"""The authors' checkpoints, made with detectron2.

See the section Checkpoints in docs/facts.md.

The files contain no configuration: the architecture and all sizes are inferred from the names and
shapes of the weights. What cannot be inferred is the same in all published models: eight attention
heads, 32 groups in the norms of the pixel decoder, and dilations 1, 2, 4 in the last stage of a
ResNet whose stem has three convolutions (R101c). Images are padded to multiples of 32, except for
COCO panoptic, the only data set with 133 classes.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from maskformer.config.load import parse_model_config
from maskformer.config.schema import DecoderConfig, ModelConfig, PixelDecoderConfig
from maskformer.errors import WeightsError
from maskformer.system.documents import one_line
from maskformer.system.writing import replace_file
from maskformer.weights.backbone_sizes import (
    R101C_GRID,
    ResNetSizes,
    Sizes,
    SwinSizes,
    backbone_config,
    backbone_sizes,
)
from maskformer.weights.checkpoint import Checkpoint
from maskformer.weights.name_map import (
    COUNTER,
    Names,
    add_position_indexes,
    count_parts,
    depths,
    restore,
)
from maskformer.weights.report import printable

DEFAULT_FILE = "model_final.pkl"
_NO_OBJECT_WEIGHT = 0.1
_SWIN_DROP_PATH = 0.3
_COCO_CLASSES = 133
_HEAD = "sem_seg_head."
_PIXELS = "sem_seg_head.pixel_decoder."
_QUERIES = "sem_seg_head.predictor."
_UNUSED = r"criterion\.empty_weight|pixel_mean|pixel_std|.*\.relative_position_index|.*\.attn_mask"
_OTHER_ARCHITECTURES = {
    "sem_seg_head.predictor.transformer_cross_attention_layers": "Mask2Former",
    "sem_seg_head.predictor.query_feat": "Mask2Former",
    "sem_seg_head.predictor.static_query": "Mask2Former",
    "proposal_generator": "a detector with proposals (R-CNN)",
    "roi_heads": "a detector with proposals (R-CNN)",
    "class_embed": "DETR",
    "transformer.decoder": "DETR",
    "detr": "DETR",
}


def read(file: Path, weights: dict[str, Tensor]) -> Checkpoint:
    """Make the checkpoint of an official file with these entries.

    Raises:
        WeightsError: it belongs to another architecture.
    """
    config = infer_config(weights, str(file))
    return Checkpoint(file, config, weights, official_names(config, is_zoo_layout(weights)))


def resnet_table(deep_stem: bool, theirs: str = "backbone.") -> dict[str, str]:
    """Return the table of prefixes of a ResNet's entries, our names to theirs; see `Names`."""
    ours = "backbone.body."
    stem = ["conv1."]
    norms = ["bn1."]
    if deep_stem:
        stem = ["conv1.0.", "conv1.3.", "conv1.6."]
        norms = ["conv1.1.", "conv1.4.", "bn1."]
    table = {}
    for number, (conv, norm) in enumerate(zip(stem, norms, strict=True), start=1):
        table[ours + conv] = f"{theirs}stem.conv{number}."
        table[ours + norm] = f"{theirs}stem.conv{number}.norm."
    for stage in (1, 2, 3, 4):
        block, target = f"{ours}layer{stage}.#.", f"{theirs}res{stage + 1}.#."
        for part in (1, 2, 3):
            table[f"{block}conv{part}."] = f"{target}conv{part}."
            table[f"{block}bn{part}."] = f"{target}conv{part}.norm."
        table[f"{block}downsample.0."] = f"{target}shortcut."
        table[f"{block}downsample.1."] = f"{target}shortcut.norm."
    return table


def _swin_table() -> dict[str, str]:
    table = {
        "backbone.body.patch_embed.": "backbone.patch_embed.",
        "backbone.norms.0.": "backbone.norm0.",
    }
    for stage in (1, 2, 3):
        table[f"backbone.norms.{stage}."] = f"backbone.norm{stage}."
        # timm merges patches at the start of a stage, the authors at the end of the previous one.
        merge = f"backbone.layers.{stage - 1}.downsample."
        table[f"backbone.body.layers_{stage}.downsample."] = merge
    for stage in (0, 1, 2, 3):
        table[f"backbone.body.layers_{stage}.blocks."] = f"backbone.layers.{stage}.blocks."
    return table


def _head_table(zoo: bool) -> dict[str, str]:
    pixels = _HEAD if zoo else _PIXELS
    table = {
        "pixel_decoder.mask_features.": f"{pixels}mask_features.",
        "pixel_decoder.input_proj.": f"{pixels}input_proj.",
        "pixel_decoder.encoder.layers.": f"{pixels}transformer.encoder.layers.",
    }
    for level in (0, 1, 2, 3):
        table[f"pixel_decoder.outputs.{level}.conv."] = f"{pixels}layer_{level + 1}."
        table[f"pixel_decoder.outputs.{level}.norm."] = f"{pixels}layer_{level + 1}.norm."
        table[f"pixel_decoder.laterals.{level}.conv."] = f"{pixels}adapter_{level + 1}."
        table[f"pixel_decoder.laterals.{level}.norm."] = f"{pixels}adapter_{level + 1}.norm."
    layers = f"{_QUERIES}transformer.decoder."
    return table | {
        "decoder.layers.#.cross_attn.": f"{layers}layers.#.multihead_attn.",
        "decoder.layers.": f"{layers}layers.",
        "decoder.norm.": f"{layers}norm.",
        "decoder.": _QUERIES,
        "class_embed.": f"{_QUERIES}class_embed.",
        "mask_embed.": f"{_QUERIES}mask_embed.",
        "classifier.": _QUERIES,
    }


def official_names(config: ModelConfig, zoo: bool) -> Names:
    """Return the translation of names in official checkpoints.

    Args:
        config: the configuration of the model.
        zoo: whether names have the layout of the published files, without `pixel_decoder.` in the
            head.

    Raises:
        ValueError: the authors' code has no such backbone.
    """
    sizes = backbone_sizes(config.backbone)
    backbone = _swin_table() if isinstance(sizes, SwinSizes) else resnet_table(sizes.deep_stem)
    return Names(backbone | _head_table(zoo), _UNUSED)


def is_zoo_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether the head has version 1, without a prefix for the pixel decoder."""
    return not any(name.startswith(_PIXELS) for name in weights)


def infer_config(weights: Mapping[str, Tensor], origin: str) -> ModelConfig:
    """Infer the configuration of the model from an official checkpoint.

    Raises:
        ValueError: the model is not supported, or an entry that determines a size is missing.
    """
    _check_architecture(weights, origin)
    pixels = _HEAD if is_zoo_layout(weights) else _PIXELS
    try:
        return parse_model_config(_config_values(weights, pixels))
    except KeyError as error:
        raise WeightsError(
            f"{origin} is not a complete MaskFormer checkpoint: it lacks {error.args[0]}, which "
            "determines a size of the model"
        ) from error
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise WeightsError(
            f"{origin} is not a complete MaskFormer checkpoint: the shapes of its entries do not "
            f"match a model: {one_line(error)}"
        ) from error


def _config_values(weights: Mapping[str, Tensor], pixels: str) -> dict[str, Any]:
    sizes = infer_backbone(weights)
    encoder_layers = count_parts(weights, rf"{pixels}transformer\.encoder\.layers\.(\d+)\.")
    channels = len(weights[f"{pixels}layer_4.weight"])
    values: dict[str, Any] = {
        "backbone": backbone_config(
            sizes, _SWIN_DROP_PATH if isinstance(sizes, SwinSizes) else 0.0
        ),
        "pixel_decoder": {
            "channels": channels,
            "mask_channels": len(weights[f"{pixels}mask_features.weight"]),
            "encoder_layers": encoder_layers,
        },
    }
    # In per-pixel models, the backbone determines the padding, and a ResNet needs none.
    padding = {"size_divisibility": 32 if isinstance(sizes, SwinSizes) else 0}
    if f"{_QUERIES}weight" in weights:
        classes = len(weights[f"{_QUERIES}weight"])
        return values | {**padding, "architecture": "per_pixel", "num_classes": classes}
    queries, width = weights[f"{_QUERIES}query_embed.weight"].shape
    layers = f"{_QUERIES}transformer.decoder.layers"
    projection = weights.get(f"{_QUERIES}input_proj.weight")
    decoder = {
        "channels": width,
        "feedforward": len(weights[f"{layers}.0.linear1.weight"]),
        "layers": count_parts(weights, rf"{layers}\.(\d+)\."),
        "enforce_input_projection": projection is not None and projection.shape[1] == width,
    }
    classifier = weights.get(f"{_QUERIES}class_embed.weight")
    if classifier is None:  # one query per class
        return values | {
            **padding,
            "architecture": "per_pixel_plus",
            "num_classes": queries,
            "decoder": decoder,
        }
    return values | {
        "architecture": "maskformer",
        "num_classes": len(classifier) - 1,
        "decoder": decoder | {"queries": queries},
        "size_divisibility": 0 if len(classifier) - 1 == _COCO_CLASSES else 32,
    }


def infer_backbone(weights: Mapping[str, Tensor]) -> Sizes:
    """Infer the family and sizes of the backbone of an official checkpoint.

    Raises:
        KeyError: an entry that determines a size is missing.
    """
    if any(name.startswith("backbone.patch_embed.") for name in weights):
        blocks = depths(weights, r"backbone\.layers\.(\d+)\.blocks\.(\d+)\.")
        first = "backbone.layers.{}.blocks.0."
        tables = [
            weights[f"{first.format(stage)}attn.relative_position_bias_table"]
            for stage in (0, 1, 2, 3)
        ]
        hidden, width = weights[f"{first.format(0)}mlp.fc1.weight"].shape
        return SwinSizes(
            embed_dim=len(weights["backbone.patch_embed.proj.weight"]),
            depths=blocks,
            heads=tuple(table.shape[1] for table in tables),
            window=(round(len(tables[0]) ** 0.5) + 1) // 2,
            mlp_ratio=hidden / width,
        )
    bottleneck = "backbone.res2.0.conv3.weight" in weights
    last = f"conv{3 if bottleneck else 2}.weight"
    return ResNetSizes(
        depths=depths(weights, r"backbone\.res(\d)\.(\d+)\."),
        channels=tuple(len(weights[f"backbone.res{stage}.0.{last}"]) for stage in (2, 3, 4, 5)),
        bottleneck=bottleneck,
        deep_stem="backbone.stem.conv2.weight" in weights,
    )


def write(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    unused: Mapping[str, Tensor],
) -> None:
    """Write a `.pkl` file like those of the authors' model zoo, which their code loads.

    It contains NumPy arrays under the names of the zoo, and the two constants that the zoo has
    besides the weights: Swin's index tables and the class weights of the loss. (Their code assumes
    this layout for every file without a version.)

    Args:
        path: a `.pkl` file, or a folder for `model_final.pkl`.
        config: the configuration of the model.
        weights: the entries under our names.
        unused: the unused entries of the checkpoint that the model was loaded from, which are
            written back unchanged.

    Raises:
        ValueError: the authors' code cannot express this model.
        OSError: the file cannot be written.
    """
    file = path if path.suffix == ".pkl" else path / DEFAULT_FILE
    check_expressible(config)
    renamed = official_names(config, zoo=True).to_theirs(
        {name: tensor for name, tensor in weights.items() if not name.endswith(COUNTER)}
    )
    add_position_indexes(renamed)
    if config.architecture == "maskformer" and config.num_classes is not None:
        renamed["criterion.empty_weight"] = no_object_weights(config.num_classes)
    restore(renamed, unused)
    arrays = {name: _to_numpy(tensor) for name, tensor in renamed.items()}
    values = {"model": arrays, "__author__": "mfkernels"}
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda partial: partial.write_bytes(pickle.dumps(values, protocol=4)))


def no_object_weights(num_classes: int) -> Tensor:
    """Return the weight of each class in the loss, `[K+1]`, with "no object" last."""
    weights = torch.ones(num_classes + 1)
    weights[-1] = _NO_OBJECT_WEIGHT
    return weights


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # not supported by NumPy
        tensor = tensor.float()
    array: NDArray[Any] = tensor.numpy()
    return array


def check_expressible(config: ModelConfig) -> None:
    """Check that the model can be inferred from its weights, so that the file is not read as
    another model.

    Raises:
        WeightsError: the authors' code has no such backbone, or a setting cannot be inferred.
    """
    if config.num_channels != 3:
        raise WeightsError(
            f"official checkpoints have 3 channels, this model has {config.num_channels}; keep it "
            "in the native format"
        )
    deep = isinstance(sizes := backbone_sizes(config.backbone), ResNetSizes) and sizes.deep_stem
    recorded = {
        "backbone.multi_grid": (config.backbone.multi_grid, R101C_GRID if deep else None),
        "decoder.heads": (config.decoder.heads, DecoderConfig().heads),
        "pixel_decoder.groups": (config.pixel_decoder.groups, PixelDecoderConfig().groups),
    }
    for name, (value, usual) in recorded.items():
        if value != usual:
            raise WeightsError(
                f"official checkpoints cannot store that model.{name} is {value}; in all of them, "
                f"it is {usual}"
            )


def _check_architecture(weights: Mapping[str, Tensor], origin: str) -> None:
    other = _other_architecture(weights)
    if other is None and any(name.startswith(_HEAD) for name in weights):
        return
    first = ", ".join(map(printable, list(weights)[:3]))
    what = f"this looks like {other}" if other else "no entry starts with 'sem_seg_head.'"
    raise WeightsError(
        f"{origin} is not a MaskFormer checkpoint: {what}. Expected an official MaskFormer or "
        "per-pixel model (if there is a config.json next to the file, give the folder); "
        f"its entries are {first}, ..."
    )


def _other_architecture(names: Mapping[str, Tensor]) -> str | None:
    return next(
        (
            what
            for start, what in _OTHER_ARCHITECTURES.items()
            if any(n.startswith(start) for n in names)
        ),
        None,
    )
