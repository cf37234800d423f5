"""MaskFormer: one set of masks with one class each (Cheng, Schwing, Kirillov 2021, §3 and §4)."""

from __future__ import annotations

from torch import Tensor, nn

from maskformer.config.schema import ModelConfig
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import MaskOutputs
from maskformer.modeling.transformer import MLP, QueryDecoder, Sizes
from mfkernels import mask_logits


class MaskFormer(SegmentationModel, architecture="maskformer"):
    """Predict a class and a mask embedding per query; embedding times pixel features is a mask.

    Use `MaskFormer.from_config`, `MaskFormer.from_pretrained` or `build_model` to make one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        channels = config.decoder.channels
        self.decoder = QueryDecoder(
            self.pixel_decoder.memory_channels, config.decoder.queries, config.decoder
        )
        self.class_embed = nn.Linear(channels, self.num_classes + 1)
        self.mask_embed = MLP(channels, channels, config.pixel_decoder.mask_channels)

    def forward(
        self,
        pixel_values: Tensor,
        with_mask_logits: bool = False,
        image_sizes: Sizes | None = None,
    ) -> MaskOutputs:
        """Compute the predictions of all L decoder layers, the final one last.

        Args:
            pixel_values: `[B, channels, H, W]`, floating-point, with as many channels as
                `config.pixel_mean` has values; normalised with `config.pixel_mean` and
                `config.pixel_std`. If the images differ in size, they are padded with zeros at the
                right and bottom.
            with_mask_logits: also compute the dense masks. The criterion and inference do not need
                them.
            image_sizes: height and width in pixels of each image without its padding. Attention
                ignores the padding if `config.decoder.mask_padding` is set; otherwise this has no
                effect.

        Returns:
            `class_logits [L, B, Q, K+1]` (index K is "no object"), `mask_embed [L, B, Q, C]`,
            `pixel_features [B, C, h, w]` at stride 4, and, with `with_mask_logits`,
            `mask_logits [L, B, Q, h, w]`.

        Raises:
            ValueError: `pixel_values` is not `[B, channels, H, W]` with at least 32 rows and
                columns, or `image_sizes` do not fit.
            TypeError: `pixel_values` is not floating-point.
        """
        sizes = self._sizes_on_coarsest_map(pixel_values, image_sizes)
        pixel_features, memory = self._decode_pixels(pixel_values, sizes)
        queries = self.decoder(memory, sizes)
        outputs = MaskOutputs(
            class_logits=self.class_embed(queries),
            mask_embed=self.mask_embed(queries),
            pixel_features=pixel_features,
        )
        if with_mask_logits:
            outputs["mask_logits"] = mask_logits(outputs["mask_embed"], pixel_features)
        return outputs

    def _class_entries(self) -> list[Tensor]:
        return [*self.class_embed.parameters()]
