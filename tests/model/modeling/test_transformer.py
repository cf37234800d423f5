from __future__ import annotations

import math

import pytest
import torch
from helpers.model_cases import relative_error
from torch import Tensor, nn

from maskformer.config.schema import DecoderConfig, PixelDecoderConfig
from maskformer.modeling.pixel_decoder import PixelDecoder
from maskformer.modeling.transformer import (
    MLP,
    Encoder,
    EncoderLayer,
    QueryDecoder,
    sine_position_encoding,
)

SMALL = DecoderConfig(queries=7, channels=16, heads=4, feedforward=40, layers=3)
MAPS = (12, 20, 28, 36)


def attention(module: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention head by head, from its definition."""
    assert module.in_proj_weight is not None
    width = module.head_dim
    q, k, v = (
        x @ weight.T + bias
        for x, weight, bias in zip(
            (q, k, v), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True
        )
    )
    heads = []
    for start in range(0, q.shape[-1], width):
        part = slice(start, start + width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        heads.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(heads, -1) @ module.out_proj.weight.T + module.out_proj.bias


def feed_forward(layer: EncoderLayer, x: Tensor) -> Tensor:
    return layer.linear2(layer.linear1(x).clamp(min=0))


def test_encoder_against_its_definition() -> None:
    encoder = Encoder(16, 2, SMALL).double().eval()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    # The encoding itself is computed in float32.
    positions = sine_position_encoding(3, 5, 16).double().flatten(1).T
    cells = x.flatten(2).transpose(1, 2)
    for layer in encoder.layers:
        q = cells + positions
        cells = layer.norm1(cells + attention(layer.self_attn, q, q, cells))
        cells = layer.norm2(cells + feed_forward(layer, cells))
    assert relative_error(encoder(x), cells.transpose(1, 2).reshape(x.shape)) < 1e-12


def test_query_decoder_against_its_definition() -> None:
    decoder = QueryDecoder(16, 7, SMALL).double().eval()
    nn.init.normal_(decoder.norm.weight)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    memory = x.flatten(2).transpose(1, 2)
    keys = memory + sine_position_encoding(3, 5, 16).double().flatten(1).T
    places = decoder.query_embed.weight
    state = torch.zeros(2, 7, 16, dtype=torch.float64)
    expected = []
    for layer in decoder.layers:
        q = state + places
        state = layer.norm1(state + attention(layer.self_attn, q, q, state))
        state = layer.norm2(state + attention(layer.cross_attn, state + places, keys, memory))
        state = layer.norm3(state + feed_forward(layer, state))
        expected.append(decoder.norm(state))
    assert relative_error(decoder(x), torch.stack(expected)) < 1e-12


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_padding_can_be_left_out(part: str) -> None:
    """Each image of a batch as if it were alone, whatever is in the padding."""
    x = torch.randn(3, 16, 4, 5, dtype=torch.float64)
    sizes = [(4, 5), (3, 5), (2, 1)]
    module = Encoder(16, 2, SMALL) if part == "encoder" else QueryDecoder(16, 7, SMALL)
    together = module.double().eval()(x, sizes)
    for index, (rows, columns) in enumerate(sizes):
        alone = module(x[index : index + 1, :, :rows, :columns])
        found = together[:, index : index + 1]
        if part == "encoder":
            found = together[index : index + 1, :, :rows, :columns]
        assert relative_error(found, alone) < 1e-12
    assert relative_error(module(x), together) > 1e-3


def test_input_projection_only_where_needed() -> None:
    assert isinstance(QueryDecoder(16, 7, SMALL).input_proj, nn.Identity)
    assert isinstance(QueryDecoder(20, 7, SMALL).input_proj, nn.Conv2d)
    enforced = SMALL.model_copy(update={"enforce_input_projection": True})
    assert isinstance(QueryDecoder(16, 7, enforced).input_proj, nn.Conv2d)


def test_dropout_acts_on_attention_too() -> None:
    decoder = QueryDecoder(16, 7, SMALL)
    layer = decoder.layers[1]
    assert layer.self_attn.dropout == layer.cross_attn.dropout == layer.dropout.p == 0.1
    x = torch.randn(1, 16, 4, 4)
    assert not torch.equal(decoder.train()(x), decoder(x))
    assert torch.equal(decoder.eval()(x), decoder(x))


def assert_uniform(weight: Tensor, bound: float) -> None:
    """Within the bound, and spread like a uniform distribution."""
    assert weight.abs().max().item() <= bound
    assert weight.abs().max().item() > 0.98 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


class TestInitialisation:
    """docs/facts.md, Pixel decoder and Transformer decoder."""

    def test_query_decoder(self) -> None:
        decoder = QueryDecoder(512, 100, DecoderConfig(layers=2))
        for layer in decoder.layers:
            for module in (layer.self_attn, layer.cross_attn):
                assert_uniform(module.in_proj_weight, math.sqrt(6 / (768 + 256)))
                assert_uniform(module.out_proj.weight, math.sqrt(6 / 512))
                assert not module.in_proj_bias.any()
                assert not module.out_proj.bias.any()
            assert_uniform(layer.linear1.weight, math.sqrt(6 / (2048 + 256)))
            assert_uniform(layer.linear2.weight, math.sqrt(6 / (2048 + 256)))
            assert_uniform(layer.linear1.bias, 1 / math.sqrt(256))
            assert layer.linear2.bias.abs().max().item() <= 1 / math.sqrt(2048)
            assert layer.linear2.bias.any()
            for norm in (layer.norm1, layer.norm2, layer.norm3, decoder.norm):
                assert torch.equal(norm.weight, torch.ones(256))
                assert not norm.bias.any()
        assert isinstance(decoder.input_proj, nn.Conv2d)
        assert_uniform(decoder.input_proj.weight, math.sqrt(3 / 512))
        assert decoder.input_proj.bias is not None
        assert not decoder.input_proj.bias.any()
        assert decoder.query_embed.weight.std().item() == pytest.approx(1, rel=0.03)
        assert decoder.query_embed.weight.abs().max().item() > 3

    def test_pixel_decoder(self) -> None:
        config = PixelDecoderConfig(encoder_layers=1)
        decoder = PixelDecoder((64, 128, 256, 512), config, DecoderConfig())
        for lateral, fan_in in zip(decoder.laterals, (64, 128, 256), strict=True):
            assert_uniform(lateral.conv.weight, math.sqrt(3 / fan_in))
        for output in decoder.outputs:
            assert_uniform(output.conv.weight, math.sqrt(3 / (256 * 9)))
            assert output.norm.num_groups == 32
            assert output.norm.eps == 1e-5
            assert output.conv.bias is None
        assert_uniform(decoder.mask_features.weight, math.sqrt(3 / (256 * 9)))
        assert not decoder.mask_features.bias.any()
        assert decoder.encoder is not None
        assert_uniform(
            decoder.encoder.layers[0].self_attn.in_proj_weight, math.sqrt(6 / (768 + 256))
        )
        assert_uniform(decoder.input_proj.weight, math.sqrt(3 / 512))
        assert not decoder.input_proj.bias.any()

    def test_heads(self) -> None:
        for layer in MLP(256, 256, 256).layers:
            assert_uniform(layer.weight, 1 / 16)
            assert layer.bias.abs().max().item() <= 1 / 16


class TestPixelDecoder:
    config = PixelDecoderConfig(channels=16, mask_channels=10, groups=4)

    def maps(self, height: int = 9, width: int = 13) -> list[Tensor]:
        sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(4)]
        return [torch.randn(2, c, *size) for c, size in zip(MAPS, sizes, strict=True)]

    def test_sizes(self) -> None:
        maps = self.maps()
        features, memory = PixelDecoder(MAPS, self.config, SMALL)(maps)
        assert features.shape == (2, 10, 9, 13)
        assert memory is maps[-1]

    def test_encoder_replaces_the_coarsest_map(self) -> None:
        config = self.config.model_copy(update={"encoder_layers": 2})
        decoder = PixelDecoder(MAPS, config, SMALL).eval()
        maps = self.maps()
        features, memory = decoder(maps)
        assert decoder.memory_channels == 16
        assert decoder.encoder is not None
        expected = decoder.encoder(decoder.input_proj(maps[-1]))
        assert torch.equal(memory, expected)
        assert features.shape == (2, 10, 9, 13)

    def test_laterals_are_linear_and_outputs_are_not(self) -> None:
        decoder = PixelDecoder(MAPS, self.config, SMALL)
        maps = self.maps()
        assert (decoder.laterals[0](maps[0]) < 0).any()
        assert not (decoder.outputs[-1](maps[-1]) < 0).any()

    def test_widths_that_do_not_fit(self) -> None:
        groups = self.config.model_copy(update={"groups": 5})
        with pytest.raises(ValueError, match="16 channels do not divide into 5 groups"):
            PixelDecoder(MAPS, groups, SMALL)
        heads = SMALL.model_copy(update={"heads": 3})
        with pytest.raises(ValueError, match="16 channels do not divide into 3 heads"):
            QueryDecoder(16, 7, heads)
        odd = SMALL.model_copy(update={"channels": 18, "heads": 3})
        with pytest.raises(ValueError, match="must be a multiple of 4, got 18"):
            QueryDecoder(16, 7, odd)
