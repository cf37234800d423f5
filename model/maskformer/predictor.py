"""A model with what it needs to predict: `maskformer.Predictor`, and the command line's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import torch

from maskformer.config.choices import Mode
from maskformer.config.schema import SMALLEST_TILE, Config
from maskformer.data import DatasetInfo, EvalBatch, Normalize
from maskformer.data.batches import join_batches
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.sample import Sample
from maskformer.data.transforms import resized_size
from maskformer.errors import UsageError
from maskformer.inference.image_processor import ImageLike, ImageProcessor, as_list, to_tensor
from maskformer.inference.prediction import Prediction, predict_batch
from maskformer.inference.ready import ready_to_predict
from maskformer.inference.test_time_augmentation import AugmentedViews
from maskformer.inference.tiles import Tiles, semantic_map_of_tiles
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.maskformer import MaskFormer
from maskformer.modeling.outputs import Size
from maskformer.output.console import Progress
from maskformer.system.text import escape
from maskformer.training.checkpoints.contents import (
    load_info,
    load_prediction_recipe,
    resolve_checkpoint,
)

LARGE_REDUCTION = 3
"""An image that shrinks by more loses details that its model could have seen."""


class Prepared(NamedTuple):
    """An image, and its network input unless tiles or views make inputs of their own."""

    sample: Sample
    batch: EvalBatch | None


class Predictor:
    """Predicts as a recipe says: whole images, tiles or several views.

        predictor = maskformer.Predictor.from_pretrained("runs/camvid", mode="panoptic")
        for prediction in predictor(["a.jpg", "b.jpg"]):
            ids, segments = prediction.panoptic

    Args:
        model: on its device; it stays as it is, in evaluation mode. Whether its later changes are
            seen depends on the backbone: make another predictor after them.
        config: thresholds, sizes, precision, views and tiles; its `eval.semantic` and
            `eval.panoptic` do not count.
        info: classes of the model.
        mode: what to predict.
        tta: average the class scores over the views of `eval.tta`.
        progress: where to say, once for each size of image, how far it is shrunk.

    Raises:
        UsageError: there is no such mode, or test-time augmentation, tiles and mode do not go
            together.
    """

    def __init__(
        self,
        model: SegmentationModel,
        config: Config,
        info: DatasetInfo,
        *,
        mode: Mode = "semantic",
        tta: bool = False,
        progress: Progress | None = None,
    ) -> None:
        check_mode(mode, tta, config.predict.tile)
        self.model = ready_to_predict(model, config.eval.precision)
        self.config = config
        self.info = info
        self.mode = mode
        self.tta = tta
        self.device = next(model.parameters()).device
        # The model's own section says how images are normalised, not the recipe's.
        self.processor = ImageProcessor(
            config.data.test_short_side,
            config.data.test_max_side,
            Normalize.from_config(model.config),
            ImageReader.from_config(config.data),
            config.eval.resize_logits,
        )
        self._progress = progress or Progress(enabled=False)
        self._views = AugmentedViews.from_config(config) if tta else None
        self._what = config.eval.model_copy(
            update={"semantic": mode == "semantic", "panoptic": mode == "panoptic"}
        )
        side = config.predict.tile
        self._tiles = None if side is None else Tiles(side, config.predict.tile_overlap)
        self._said: set[Size] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, also in another process, which says nothing."""
        return self.__dict__ | {"_progress": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_progress": Progress(enabled=False)})

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *overrides: str,
        mode: Mode | None = None,
        tta: bool = False,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Of a run, a model's folder or file, or a hub id, as `maskformer predict` takes them.

        Args:
            overrides: values that replace the recipe's, such as `"predict.tile=512"` or
                `"eval.precision=auto"`.
            mode: the recipe decides unless given, as far as it can: views and tiles are semantic.
            tta, progress: as above.
            device: the GPU if there is one, unless given.

        Raises:
            CheckpointError, HubError: nothing there, or no hub.
            ConfigError: an override that does not fit.
            UsageError: an override that would change nothing that is predicted.
            ValueError: a damaged file, or as above.
        """
        folder = resolve_checkpoint(Path(path_or_hub_id))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = MaskFormer.from_pretrained(folder).to(device)
        config = load_prediction_recipe(folder, model, list(overrides))
        averaged = tta or config.predict.tile is not None
        mode = mode or ("panoptic" if config.eval.panoptic and not averaged else "semantic")
        info = load_info(folder, model)
        return cls(model, config, info, mode=mode, tta=tta, progress=progress)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> list[Prediction]:
        """What the model finds in each image, in its original size; `Prediction.numpy` gives
        NumPy arrays.

        Args:
            images: one or several, of any size, as in `ImageProcessor`. Those that are padded
                alike run together, at most `eval.batch_size` of them.

        Raises:
            ValueError: no images, or one of another shape or dtype.
            DatasetError: a file that is no image, or one so narrow that it would not fit into
                memory.
            UsageError: model and classes do not allow the mode.
        """
        reader = self.processor.reader
        samples = (
            Sample.unlabelled(to_tensor(image, reader), f"{k}", k)
            for k, image in enumerate(as_list(images))
        )
        found: dict[int, Prediction] = {}
        for batch in self.batches(map(self.prepare, samples)):
            for prepared, prediction in zip(batch, self.predict(batch), strict=True):
                found[int(prepared.sample.image_id)] = prediction
        return [found[k] for k in sorted(found)]

    def prepare(self, sample: Sample) -> Prepared:
        """Makes the network input on the CPU; threads may do so beside `predict`.

        Raises:
            DatasetError: the image is so narrow that it would not fit into memory.
        """
        if self._views is not None or self._count_tiles(sample) > 1:
            return Prepared(sample, None)
        return Prepared(sample, self.processor.batch([sample]))

    def batches(self, prepared: Iterable[Prepared]) -> Iterator[list[Prepared]]:
        """Batches of at most `eval.batch_size` images whose inputs have the same size, so that none
        is padded for another one. An image without an input is alone.
        """
        waiting: dict[Size, list[Prepared]] = {}
        for one in prepared:
            if one.batch is None:
                yield [one]
                continue
            (size,) = one.batch.input_sizes
            waiting.setdefault(size, []).append(one)
            if len(waiting[size]) == self.config.eval.batch_size:
                yield waiting.pop(size)
        yield from waiting.values()

    def predict(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """What the model finds in one of `batches`.

        Raises:
            UsageError: model and classes do not allow the mode.
        """
        inputs = [one.batch for one in prepared if one.batch is not None]
        if not inputs:
            return [self._predict_alone(one.sample) for one in prepared]
        for one, batch in zip(prepared, inputs, strict=True):
            self._say_reduction(one.sample, batch.image_sizes[0])
        return predict_batch(
            self.model,
            join_batches(inputs),
            self.info,
            self._what,
            self.device,
            with_instances=self.mode == "instance",
        )

    def _predict_alone(self, sample: Sample) -> Prediction:
        if self._tiles is not None:
            return self._in_tiles(sample, self._tiles)
        batch = EvalBatch(torch.empty(0), (), (), (sample.size,), (sample,))
        [prediction] = predict_batch(
            self.model, batch, self.info, self._what, self.device, tta=self._views
        )
        return prediction

    def _count_tiles(self, sample: Sample) -> int:
        return 1 if self._tiles is None else self._tiles.count(sample.size)

    def _in_tiles(self, sample: Sample, tiles: Tiles) -> Prediction:
        size = tiles.size(sample.size)
        count = tiles.count(sample.size)
        self._say(sample, f"is seen in {count} tiles of {self._described(size)}")
        with self._progress.counting(f"tiles of {sample.name}", count) as counter:
            classes = semantic_map_of_tiles(
                self.model,
                sample.image,
                tiles,
                self.processor,
                self.device,
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
            self._progress.print(f"{escape(sample.name)}: {width}x{height} {what}")


def check_mode(mode: Mode, tta: bool, tile: int | None) -> None:
    """Refuses what is no mode, what cannot be averaged, and two ways of averaging at once.

    Raises:
        UsageError: so it is.
    """
    if mode not in get_args(Mode):
        raise UsageError(f"mode must be {', '.join(map(repr, get_args(Mode)))}, got {mode!r:.60}")
    if tta and mode != "semantic":
        raise UsageError(
            f"test-time augmentation averages class scores, expected mode 'semantic', got '{mode}'"
        )
    if tile is not None and mode != "semantic":
        raise UsageError(
            f"predict.tile={tile} joins the class scores of tiles, expected mode 'semantic', got "
            f"'{mode}': segments of different tiles have no common score; leave it out, or predict "
            "with --mode semantic"
        )
    if tile is not None and tta:
        raise UsageError(f"predict.tile={tile} and --tta do not go together: leave one of them out")
