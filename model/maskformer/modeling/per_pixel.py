"""The paper's two per-pixel classification baselines (§4.1, official `per_pixel_baseline.py`)."""

from __future__ import annotations

from torch import Tensor, nn

from maskformer.config.schema import ModelConfig
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import PixelOutputs
from maskformer.modeling.transformer import MLP, QueryDecoder, Sizes
from mfkernels import mask_logits


class PerPixelBaseline(SegmentationModel, architecture="per_pixel"):
    """The baseline of §4.1: a linear classifier on every pixel feature."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Conv2d(
            config.pixel_decoder.mask_channels, self.num_classes, kernel_size=1
        )
        nn.init.kaiming_normal_(self.classifier.weight, mode="fan_out", nonlinearity="relu")
        bias = self.classifier.bias
        assert bias is not None
        nn.init.zeros_(bias)

    def forward(self, pixel_values: Tensor, image_sizes: Sizes | None = None) -> PixelOutputs:
        """Compute the class logits of each pixel.

        Args:
            pixel_values, image_sizes: as in `MaskFormer.forward`.

        Returns:
            `pixel_logits [1, B, K, h, w]` at stride 4.

        Raises:
            TypeError, ValueError: as in `MaskFormer.forward`.
        """
        sizes = self._sizes_on_coarsest_map(pixel_values, image_sizes)
        pixel_features, _ = self._decode_pixels(pixel_values, sizes)
        return PixelOutputs(pixel_logits=self.classifier(pixel_features)[None])

    def _class_entries(self) -> list[Tensor]:
        return [*self.classifier.parameters()]


class PerPixelBaselinePlus(SegmentationModel, architecture="per_pixel_plus"):
    """The stronger baseline of §4.1: MaskFormer's decoder with one query per class. The mask of
    query k scores class k.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        channels = config.decoder.channels
        self.decoder = QueryDecoder(
            self.pixel_decoder.memory_channels, self.num_classes, config.decoder
        )
        self.mask_embed = MLP(channels, channels, config.pixel_decoder.mask_channels)

    def forward(self, pixel_values: Tensor, image_sizes: Sizes | None = None) -> PixelOutputs:
        """Compute the class logits of each pixel.

        Args:
            pixel_values, image_sizes: as in `MaskFormer.forward`.

        Returns:
            `pixel_logits [L, B, K, h, w]` at stride 4; the final layer is the last one. In
            evaluation mode, it is the only one (L = 1).

        Raises:
            TypeError, ValueError: as in `MaskFormer.forward`.
        """
        sizes = self._sizes_on_coarsest_map(pixel_values, image_sizes)
        pixel_features, memory = self._decode_pixels(pixel_values, sizes)
        queries = self.decoder(memory, sizes)
        embeddings = self.mask_embed(queries if self.training else queries[-1:])
        return PixelOutputs(pixel_logits=mask_logits(embeddings, pixel_features))

    def _class_entries(self) -> list[Tensor]:
        return [*self.decoder.query_embed.parameters()]
