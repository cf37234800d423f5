"""Folders of `transformers`: `MaskFormerForInstanceSegmentation` with a ResNet or a Swin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskformer.config.load import parse_model_config
from maskformer.config.schema import DecoderConfig, ModelConfig
from maskformer.errors import ConfigError, WeightsError
from maskformer.system.documents import check, shown
from maskformer.system.writing import write_json
from maskformer.weights.backbone_sizes import (
    ResNetSizes,
    Sizes,
    SwinSizes,
    backbone_config,
    backbone_sizes,
)
from maskformer.weights.checkpoint import Checkpoint
from maskformer.weights.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_sharded,
    read_tensors,
    write_tensors,
)
from maskformer.weights.name_map import COUNTER, Names, add_position_indexes, restore
from maskformer.weights.official import no_object_weights
from maskformer.weights.preprocessor import (
    SECTION,
    image_section,
    image_values,
    read_preprocessor,
    section_values,
)
from maskformer.weights.schemas import HeadPart, ResNetPart, SwinPart

WEIGHT_FILES = (
    WEIGHTS_FILE,
    f"{WEIGHTS_FILE}.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_STAGES = ["stage1", "stage2", "stage3", "stage4"]

_PIXELS = "model.pixel_level_module."
_ENCODER = f"{_PIXELS}encoder."
_SWIN = f"{_ENCODER}model."
_FPN = f"{_PIXELS}decoder.fpn."
_QUERIES = "model.transformer_module."
_FINAL_NORM = f"{_SWIN}layernorm."
_CLASS_WEIGHTS = "criterion.empty_weight"
_UNUSED = rf"criterion\.empty_weight|.*\.relative_position_index|{_FINAL_NORM}(weight|bias)"
# Settings that only matter for training with `transformers`, and are kept for that.
_OF_TRAINING = (
    *("mask_weight", "dice_weight", "cross_entropy_weight"),
    *("use_auxiliary_loss", "output_auxiliary_logits"),
)
_OF_DECODER = ("attention_dropout", "activation_dropout")
# The names of some entries differ between the models of transformers 5 in memory and its files.
_ALIASES = {
    r"(transformer_module\.decoder\..*)\.o_proj\.": r"\1.out_proj.",
    r"(transformer_module\.decoder\..*)\.mlp\.fc(\d)\.": r"\1.fc\2.",
}

# Settings that can be changed in `transformers`, but are fixed in this package.
_FIXED: dict[str, dict[str, Any]] = {
    "resnet": {
        "embedding_size": 64,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
    "swin": {
        "patch_size": 4,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
    },
    "detr": {"activation_function": "relu"},
}


def _backbone_table() -> dict[str, str]:
    table = {
        "backbone.body.conv1.": f"{_ENCODER}embedder.embedder.convolution.",
        "backbone.body.bn1.": f"{_ENCODER}embedder.embedder.normalization.",
        "backbone.body.patch_embed.proj.": f"{_SWIN}embeddings.patch_embeddings.projection.",
        "backbone.body.patch_embed.norm.": f"{_SWIN}embeddings.norm.",
        "backbone.norms.": f"{_PIXELS}encoder.hidden_states_norms.",
    }
    for stage in (0, 1, 2, 3):
        block, target = (
            f"backbone.body.layer{stage + 1}.#.",
            f"{_ENCODER}encoder.stages.{stage}.layers.#.",
        )
        for conv in (1, 2, 3):
            table[f"{block}conv{conv}."] = f"{target}layer.{conv - 1}.convolution."
            table[f"{block}bn{conv}."] = f"{target}layer.{conv - 1}.normalization."
        table[f"{block}downsample.0."] = f"{target}shortcut.convolution."
        table[f"{block}downsample.1."] = f"{target}shortcut.normalization."

        block, target = (
            f"backbone.body.layers_{stage}.blocks.#.",
            f"{_SWIN}encoder.layers.{stage}.blocks.#.",
        )
        attention = f"{target}attention."
        table |= {
            f"{block}norm1.": f"{target}layernorm_before.",
            f"{block}norm2.": f"{target}layernorm_after.",
            f"{block}attn.qkv.": f"{attention}self.{{query,key,value}}.",
            f"{block}attn.proj.": f"{attention}output.dense.",
            f"{block}attn.": f"{attention}self.",
            f"{block}mlp.fc1.": f"{target}intermediate.dense.",
            f"{block}mlp.fc2.": f"{target}output.dense.",
            # timm merges patches at the start of a stage, `transformers` at the end of the one
            # before.
            f"backbone.body.layers_{stage + 1}.downsample.": (
                f"{_SWIN}encoder.layers.{stage}.downsample."
            ),
        }
    return table


def _table() -> dict[str, str]:
    table = _backbone_table() | {
        "pixel_decoder.outputs.3.conv.": f"{_FPN}stem.0.",
        "pixel_decoder.outputs.3.norm.": f"{_FPN}stem.1.",
        "pixel_decoder.mask_features.": f"{_PIXELS}decoder.mask_projection.",
    }
    for level in (0, 1, 2):
        target = f"{_FPN}layers.{2 - level}."
        table |= {
            f"pixel_decoder.laterals.{level}.conv.": f"{target}proj.0.",
            f"pixel_decoder.laterals.{level}.norm.": f"{target}proj.1.",
            f"pixel_decoder.outputs.{level}.conv.": f"{target}block.0.",
            f"pixel_decoder.outputs.{level}.norm.": f"{target}block.1.",
        }
    layer, target = "decoder.layers.#.", f"{_QUERIES}decoder.layers.#."
    for ours, theirs in (("self_attn", "self_attn"), ("cross_attn", "encoder_attn")):
        table[f"{layer}{ours}.in_proj_"] = f"{target}{theirs}.{{q,k,v}}_proj."
        table[f"{layer}{ours}."] = f"{target}{theirs}."
    return table | {
        f"{layer}linear": f"{target}fc",
        f"{layer}norm1.": f"{target}self_attn_layer_norm.",
        f"{layer}norm2.": f"{target}encoder_attn_layer_norm.",
        f"{layer}norm3.": f"{target}final_layer_norm.",
        "decoder.norm.": f"{_QUERIES}decoder.layernorm.",
        "decoder.query_embed.": f"{_QUERIES}queries_embedder.",
        "decoder.input_proj.": f"{_QUERIES}input_projection.",
        "class_embed.": "class_predictor.",
        "mask_embed.layers.#.": "mask_embedder.#.0.",
    }


def huggingface_names() -> Names:
    """Return the translation of names in the files and models of `transformers`."""
    return Names(_table(), _UNUSED, _ALIASES)


def read(folder: Path, values: Mapping[str, Any]) -> Checkpoint:
    """Read the checkpoint in a folder whose `config.json` holds `values`.

    Raises:
        FileNotFoundError: there is no weight file.
        ConfigError: the configuration is damaged, or describes a model that is not supported.
        WeightsError: the weights are damaged or contain code.
    """
    try:
        config = read_config(values, read_preprocessor(folder))
        classes = class_names(values)
    except ValueError as error:
        raise ConfigError(
            f"{folder / CONFIG_FILE} does not describe a model that can be loaded: {error}"
        ) from error
    origin, weights = read_weights(folder)
    return Checkpoint(origin, config, weights, huggingface_names(), classes, _settings(values))


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that affect training with `transformers`, but not predictions."""
    decoder = values.get("decoder_config")
    of_decoder = decoder if isinstance(decoder, dict) else {}
    kept = {name: values[name] for name in _OF_TRAINING if name in values}
    dropout = {name: of_decoder[name] for name in _OF_DECODER if name in of_decoder}
    return kept | {"decoder_config": dropout}


def read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return the weight file of a folder (the first in `WEIGHT_FILES` that exists), and its
    entries.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or contains code.
    """
    for name in WEIGHT_FILES:
        file = folder / name
        if file.is_file():
            return file, read_sharded(file) if file.suffix == ".json" else read_tensors(file)
    raise FileNotFoundError(f"{folder} holds no {WEIGHTS_FILE} (nor {', '.join(WEIGHT_FILES[1:])})")


def read_config(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None) -> ModelConfig:
    """Return the configuration of the model that a `config.json` describes.

    Args:
        values: the values of `config.json`.
        preprocessor: the values of `preprocessor_config.json`, for the normalisation and padding of
            images. They override those that `write` puts into `config.json`.

    Raises:
        ValueError: it is another model, or has settings that this package does not support.
    """
    if values.get("model_type") != "maskformer":
        raise WeightsError(
            f"its model_type is {shown(str(values.get('model_type')))}, expected 'maskformer' (or "
            "the config.json of this package)"
        )
    decoder = _section(values, "decoder_config", ("detr", "maskformer-detr"), "detr")
    head = check(HeadPart, values)
    model: dict[str, Any] = {
        "num_classes": len(class_names(values)),
        "backbone": _read_backbone(values),
        "pixel_decoder": {
            "channels": head.fpn_feature_size,
            "mask_channels": head.mask_feature_size,
        },
        "decoder": {
            "queries": decoder.get("num_queries", 100),
            "channels": decoder.get("d_model", 256),
            "heads": decoder.get("decoder_attention_heads", 8),
            "feedforward": decoder.get("decoder_ffn_dim", 2048),
            "layers": decoder.get("decoder_layers", 6),
            "dropout": decoder.get("dropout", DecoderConfig().dropout),
        },
    }
    model |= section_values(values)
    if preprocessor:
        model |= image_values(preprocessor)
    return parse_model_config(model)


def class_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in a `config.json`, in order."""
    head = check(HeadPart, values)
    if head.id2label:
        return tuple(str(head.id2label[key]) for key in sorted(head.id2label, key=int))
    return tuple(f"LABEL_{index}" for index in range(head.num_labels))


def write(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    classes: Sequence[str] | None,
    unused: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Write `config.json` and `model.safetensors` as `transformers` does.

    Entries that only its model has (the unused final norm of Swin, the batch counters, the index
    tables) get their initial values, unless the model was loaded from such a folder.

    Args:
        folder: the folder.
        config: the configuration of the model.
        weights: the entries under our names.
        classes: the names of the classes.
        unused: the unused entries of the checkpoint that the model was loaded from, which are
            written back unchanged.
        settings: the `settings` of that `Checkpoint`, which are written back, too.

    Raises:
        ValueError: `transformers` has no such model.
        OSError: the folder cannot be written.
    """
    sizes = check_expressible(config)
    renamed = huggingface_names().to_theirs(weights)
    assert config.num_classes is not None
    renamed[_CLASS_WEIGHTS] = no_object_weights(config.num_classes)
    for name in [name for name in renamed if name.endswith("running_var")]:
        counter = name.removesuffix("running_var") + COUNTER
        renamed.setdefault(counter, torch.zeros((), dtype=torch.int64))
    if isinstance(sizes, SwinSizes):
        last = renamed[f"{_PIXELS}encoder.hidden_states_norms.3.weight"]
        renamed[f"{_FINAL_NORM}weight"] = torch.ones_like(last)
        renamed[f"{_FINAL_NORM}bias"] = torch.zeros_like(last)
    add_position_indexes(renamed)
    restore(renamed, unused)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_FILE, renamed)
    values = _write_config(config, sizes, classes)
    for name, value in settings.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    section = image_section(config)
    if section is not None:
        values[SECTION] = section
    values["dtype"] = str(renamed["class_predictor.weight"].dtype).removeprefix("torch.")
    values["no_object_weight"] = round(float(renamed[_CLASS_WEIGHTS][-1]), 6)
    write_json(folder / CONFIG_FILE, values, indent=2)


def _section(
    values: Mapping[str, Any], name: str, types: Sequence[str], kind: str
) -> Mapping[str, Any]:
    section = values.get(name)
    section = section if isinstance(section, dict) else {}
    if section.get("model_type") not in types:
        raise WeightsError(
            f"its {name} has the model_type {shown(str(section.get('model_type')))}, "
            f"expected {types[0]}"
        )
    for key, wanted in _FIXED[kind].items():
        if section.get(key, wanted) not in (wanted, [wanted, wanted]):
            raise WeightsError(
                f"its {name} has {key} = {shown(section[key])}, which this package does not "
                f"support; expected {wanted!r}"
            )
    return section


def _read_backbone(values: Mapping[str, Any]) -> Any:
    name = "backbone_config"
    given = values.get(name)
    if isinstance(given, dict) and given.get("model_type") == "resnet":
        resnet = check(ResNetPart, _section(values, name, ("resnet",), "resnet"))
        return backbone_config(
            ResNetSizes(
                depths=resnet.depths,
                channels=resnet.hidden_sizes,
                bottleneck=resnet.layer_type == "bottleneck",
            )
        )
    swin = check(SwinPart, _section(values, name, ("swin", "maskformer-swin"), "swin"))
    return backbone_config(
        SwinSizes(
            embed_dim=swin.embed_dim,
            depths=swin.depths,
            heads=swin.num_heads,
            window=swin.window_size,
            mlp_ratio=swin.mlp_ratio,
        ),
        drop_path=swin.drop_path_rate,
    )


def check_expressible(config: ModelConfig) -> Sizes:
    """Check that `transformers` has the model, and return the sizes of its backbone.

    Raises:
        ValueError: it does not; the message says why.
    """
    sizes = backbone_sizes(config.backbone)
    coarsest = sizes.channels[-1] if isinstance(sizes, ResNetSizes) else 8 * sizes.embed_dim
    reasons = {
        f"it takes {config.num_channels} channels, not 3": config.num_channels != 3,
        f"its architecture is {config.architecture}": config.architecture != "maskformer",
        "its pixel decoder has a transformer encoder (+6 Enc)": config.pixel_decoder.encoder_layers,
        "its ResNet has a stem of three convolutions (R101c)": (
            isinstance(sizes, ResNetSizes) and sizes.deep_stem
        ),
        "its last stage is dilated (multi_grid)": config.backbone.multi_grid,
        "the norms of its pixel decoder do not have 32 groups": config.pixel_decoder.groups != 32,
        "it projects features that already have the decoder's width": (
            config.decoder.enforce_input_projection and coarsest == config.decoder.channels
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise WeightsError(f"transformers' MaskFormer cannot express this model: {reason}")
    return sizes


def _write_config(
    config: ModelConfig, sizes: Sizes, classes: Sequence[str] | None
) -> dict[str, Any]:
    decoder = config.decoder
    names = list(classes or (f"LABEL_{index}" for index in range(config.num_classes or 0)))
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _write_backbone(sizes, config.backbone.drop_path),
        "decoder_config": {
            "model_type": "detr",
            "num_queries": decoder.queries,
            "d_model": decoder.channels,
            "decoder_layers": decoder.layers,
            "decoder_attention_heads": decoder.heads,
            "decoder_ffn_dim": decoder.feedforward,
            "encoder_attention_heads": decoder.heads,
            "dropout": decoder.dropout,
        },
        "fpn_feature_size": config.pixel_decoder.channels,
        "mask_feature_size": config.pixel_decoder.mask_channels,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _write_backbone(sizes: Sizes, drop_path: float) -> dict[str, Any]:
    if isinstance(sizes, ResNetSizes):
        return {
            "model_type": "resnet",
            "depths": list(sizes.depths),
            "hidden_sizes": list(sizes.channels),
            "embedding_size": 64,
            "layer_type": "bottleneck" if sizes.bottleneck else "basic",
            "out_features": _STAGES,
        }
    return {
        "model_type": "swin",
        "embed_dim": sizes.embed_dim,
        "depths": list(sizes.depths),
        "num_heads": list(sizes.heads),
        "window_size": sizes.window,
        "mlp_ratio": sizes.mlp_ratio,
        "drop_path_rate": drop_path,
        "out_features": _STAGES,
    }
