"""One image after the other through a model, whole or in tiles, and what there is to say of it."""

from __future__ import annotations

from maskformer.config.choices import Mode
from maskformer.config.schema import SMALLEST_TILE, Config
from maskformer.data import DatasetInfo, Normalize
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.sample import Sample
from maskformer.data.transforms import resized_size
from maskformer.inference.image_processor import ImageProcessor
from maskformer.inference.prediction import Prediction, predict_batch
from maskformer.inference.test_time_augmentation import AugmentedViews
from maskformer.inference.tiles import Tiles, semantic_map_of_tiles
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import Size
from maskformer.output.console import Progress

LARGE_REDUCTION = 3
"""An image that shrinks by more loses details that its model could have seen."""


class Predictor:
    """Predicts as a recipe says; says once for each size of image how far it is shrunk.

    Args:
        model: on its device.
        config: thresholds, sizes, views and tiles.
        info: classes of the model.
        mode: what to predict.
        tta: average the class scores over the views of `eval.tta`.
        progress: where to say it.
    """

    def __init__(
        self,
        model: SegmentationModel,
        config: Config,
        info: DatasetInfo,
        *,
        mode: Mode,
        tta: bool,
        progress: Progress,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.info = info
        self.mode = mode
        self.progress = progress
        self._views = AugmentedViews.from_config(config) if tta else None
        self._what = config.eval.model_copy(
            update={"semantic": mode == "semantic", "panoptic": mode == "panoptic"}
        )
        self._device = next(model.parameters()).device
        # The model's own section says how images are normalised, not the recipe's.
        self._processor = ImageProcessor(
            config.data.test_short_side,
            config.data.test_max_side,
            Normalize.from_config(model.config),
            ImageReader.from_config(config.data),
        )
        side = config.predict.tile
        self._tiles = None if side is None else Tiles(side, config.predict.tile_overlap)
        self._said: set[Size] = set()

    def __call__(self, sample: Sample) -> Prediction:
        """What the model finds in an image.

        Raises:
            DatasetError: it is so narrow that it would not fit into memory.
            UsageError: model and classes do not allow the mode.
        """
        tiles = self._tiles
        if tiles is not None and tiles.count(sample.size) > 1:
            return self._in_tiles(sample, tiles)
        batch = self._processor.batch([sample])
        if self._views is None:
            self._say_reduction(sample, batch.image_sizes[0])
        [prediction] = predict_batch(
            self.model,
            batch,
            self.info,
            self._what,
            self._device,
            tta=self._views,
            with_instances=self.mode == "instance",
        )
        return prediction

    def _in_tiles(self, sample: Sample, tiles: Tiles) -> Prediction:
        size = tiles.size(sample.size)
        count = tiles.count(sample.size)
        self._say(sample, f"is seen in {count} tiles of {self._described(size)}")
        with self.progress.counting(f"tiles of {sample.name}", count) as counter:
            classes = semantic_map_of_tiles(
                self.model,
                sample.image,
                tiles,
                self._processor,
                self._device,
                resize_logits=self._what.resize_logits,
                on_tile=lambda: counter.advance(1),
            )
        return Prediction(classes=classes)

    def _described(self, size: Size) -> str:
        """Of a tile, as an image and as the network sees it."""
        pixels = f"{size[1]}x{size[0]}"
        short_side = self.config.data.test_short_side
        if short_side is None or min(size) <= short_side:
            return pixels
        height, width = resized_size(size, short_side, self.config.data.test_max_side)
        return f"{pixels}, each shrunk to {width}x{height}"

    def _say_reduction(self, sample: Sample, size: Size) -> None:
        """Names an image of which the network sees little, and what would show it more."""
        if min(sample.size) < LARGE_REDUCTION * min(size):
            return
        if self.mode == "semantic":
            side = max(self.config.data.test_short_side or 0, SMALLEST_TILE)
            remedy = f"predict.tile={side} keeps its details"
        else:
            remedy = "a larger data.test_short_side keeps more of its details"
        self._say(sample, f"is shrunk to {size[1]}x{size[0]}; {remedy}")

    def _say(self, sample: Sample, what: str) -> None:
        if sample.size not in self._said:
            self._said.add(sample.size)
            height, width = sample.size
            self.progress.print(f"{sample.name}: {width}x{height} {what}")
