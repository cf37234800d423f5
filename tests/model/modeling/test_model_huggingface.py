"""Hugging Face's MaskFormer, written by others, as an oracle: same weights, same outputs."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.model_cases import randomise, relative_error
from torch import Tensor, nn

from maskformer.config.schema import ModelConfig
from maskformer.modeling.base import build_model

transformers = pytest.importorskip("transformers")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet50.tv_in1k": lambda: transformers.ResNetConfig(out_features=STAGES),
    "swin_tiny_patch4_window7_224.ms_in1k": lambda: transformers.SwinConfig(out_features=STAGES),
}

PIXELS = "model.pixel_level_module."
QUERIES = "model.transformer_module."
RESNET, SWIN = f"{PIXELS}encoder.", f"{PIXELS}encoder.model."
FPN = f"{PIXELS}decoder.fpn."
RULES = [
    (r"backbone\.body\.conv1", f"{RESNET}embedder.embedder.convolution"),
    (r"backbone\.body\.bn1", f"{RESNET}embedder.embedder.normalization"),
    (r"backbone\.body\.layer1\.", f"{RESNET}encoder.stages.0.layers."),
    (r"backbone\.body\.layer2\.", f"{RESNET}encoder.stages.1.layers."),
    (r"backbone\.body\.layer3\.", f"{RESNET}encoder.stages.2.layers."),
    (r"backbone\.body\.layer4\.", f"{RESNET}encoder.stages.3.layers."),
    (r"(stages.*)\.(conv|bn)1\.", r"\1.layer.0.\2."),
    (r"(stages.*)\.(conv|bn)2\.", r"\1.layer.1.\2."),
    (r"(stages.*)\.(conv|bn)3\.", r"\1.layer.2.\2."),
    (r"(layer\.\d)\.conv", r"\1.convolution"),
    (r"(layer\.\d)\.bn", r"\1.normalization"),
    (r"(stages.*)downsample\.0", r"\1shortcut.convolution"),
    (r"(stages.*)downsample\.1", r"\1shortcut.normalization"),
    (r"backbone\.norms", f"{PIXELS}encoder.hidden_states_norms"),
    (r"backbone\.body\.patch_embed\.proj", f"{SWIN}embeddings.patch_embeddings.projection"),
    (r"backbone\.body\.patch_embed", f"{SWIN}embeddings"),
    (r"backbone\.body\.layers_1\.downsample", f"{SWIN}encoder.layers.0.downsample"),
    (r"backbone\.body\.layers_2\.downsample", f"{SWIN}encoder.layers.1.downsample"),
    (r"backbone\.body\.layers_3\.downsample", f"{SWIN}encoder.layers.2.downsample"),
    (r"backbone\.body\.layers_(\d)", rf"{SWIN}encoder.layers.\1"),
    (r"(blocks.*)norm1", r"\1layernorm_before"),
    (r"(blocks.*)norm2", r"\1layernorm_after"),
    (r"(blocks.*)attn\.proj", r"\1attention.output.dense"),
    (r"(blocks.*)attn\.", r"\1attention.self."),
    (r"(blocks.*)mlp\.fc1", r"\1intermediate.dense"),
    (r"(blocks.*)mlp\.fc2", r"\1output.dense"),
    (r"pixel_decoder\.outputs\.3\.conv", f"{FPN}stem.0"),
    (r"pixel_decoder\.outputs\.3\.norm", f"{FPN}stem.1"),
    (r"pixel_decoder\.laterals\.0\.", f"{FPN}layers.2.proj."),
    (r"pixel_decoder\.laterals\.1\.", f"{FPN}layers.1.proj."),
    (r"pixel_decoder\.laterals\.2\.", f"{FPN}layers.0.proj."),
    (r"pixel_decoder\.outputs\.0\.", f"{FPN}layers.2.block."),
    (r"pixel_decoder\.outputs\.1\.", f"{FPN}layers.1.block."),
    (r"pixel_decoder\.outputs\.2\.", f"{FPN}layers.0.block."),
    (r"(fpn.*)conv", r"\g<1>0"),
    (r"(fpn.*)norm", r"\g<1>1"),
    (r"pixel_decoder\.mask_features", f"{PIXELS}decoder.mask_projection"),
    (r"mask_embed\.layers\.(\d)", r"mask_embedder.\1.0"),
    (r"class_embed", "class_predictor"),
    (r"^decoder\.query_embed", f"{QUERIES}queries_embedder"),
    (r"^decoder\.input_proj", f"{QUERIES}input_projection"),
    (r"^decoder\.norm", f"{QUERIES}decoder.layernorm"),
    (r"^decoder\.layers", f"{QUERIES}decoder.layers"),
    (r"(transformer_module.*)cross_attn", r"\1encoder_attn"),
    (r"(transformer_module.*)out_proj", r"\1o_proj"),
    (r"(transformer_module.*)linear", r"\1mlp.fc"),
    (r"(transformer_module.*)norm1", r"\1self_attn_layer_norm"),
    (r"(transformer_module.*)norm2", r"\1encoder_attn_layer_norm"),
    (r"(transformer_module.*)norm3", r"\1final_layer_norm"),
]
UNUSED = (
    r".*num_batches_tracked|.*relative_position_index|criterion\..*|.*encoder\.model\.layernorm\..*"
)


def their_names(name: str) -> list[str]:
    """The entries of theirs that, joined, make one of ours."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    if "in_proj_" in name:
        return [name.replace("in_proj_", f"{part}_proj.") for part in "qkv"]
    if "self.qkv" in name:
        return [name.replace("qkv", part) for part in ("query", "key", "value")]
    return [name]


def take_over(ours: nn.Module, theirs: nn.Module) -> None:
    state = theirs.state_dict()
    names = {name: their_names(name) for name in ours.state_dict()}
    ours.load_state_dict({name: torch.cat([state[n] for n in names[name]]) for name in names})
    taken = [name for parts in names.values() for name in parts]
    assert len(taken) == len(set(taken))
    left = set(state) - set(taken)
    assert [name for name in left if not re.fullmatch(UNUSED, name)] == []


@pytest.mark.parametrize("name", BACKBONES)
def test_same_weights_same_outputs(name: str) -> None:
    config = transformers.MaskFormerConfig(backbone_config=BACKBONES[name](), num_labels=150)
    theirs = transformers.MaskFormerForInstanceSegmentation(config).eval()
    randomise(theirs)
    for key, parameter in theirs.named_parameters():
        if key.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    ours = build_model(ModelConfig.model_validate({"num_classes": 150, "backbone": {"name": name}}))
    take_over(ours.eval(), theirs)
    layers: list[Tensor] = []
    theirs.model.transformer_module.decoder.layers[2].register_forward_hook(
        lambda _module, _args, output: layers.append(output)
    )
    # Odd sizes, no multiples of the stride or of the window; and a size that needs no padding.
    for size in ((71, 101), (224, 224)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = theirs(x)
            outputs = ours(x, with_mask_logits=True)
            state = theirs.model.transformer_module.decoder.layernorm(layers.pop())
            third = theirs.class_predictor(state)
        class_logits, mask_logits = outputs["class_logits"], outputs["mask_logits"]
        assert relative_error(class_logits[-1], expected.class_queries_logits) < 1e-5
        assert relative_error(mask_logits[-1], expected.masks_queries_logits) < 1e-4
        assert relative_error(class_logits[2], third) < 1e-5
