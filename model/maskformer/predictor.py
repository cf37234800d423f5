"""`maskformer.Predictor`: a model with everything it needs to predict."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import torch
from PIL import Image

from maskformer.config.choices import Mode
from maskformer.config.schema import COARSEST_STRIDE, Config
from maskformer.data import DatasetInfo, EvalBatch, Normalize
from maskformer.data.batches import join_batches
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
from maskformer.output.picture_writer import draw_prediction
from maskformer.output.pictures import to_pillow
from maskformer.output.result_writer import categories, describe_instances, describe_segments
from maskformer.system.paths import given_path
from maskformer.system.text import escape
from maskformer.training.checkpoints.contents import (
    load_info,
    load_prediction_recipe,
    resolve_checkpoint,
    with_things,
)

LARGE_REDUCTION = 3
"""An image that is shrunk by this factor or more loses details that the model could have used."""


class Prepared(NamedTuple):
    """An image and its network input, which is None if tiles or views have their own inputs."""

    sample: Sample
    batch: EvalBatch | None


class Predictor:
    """Predict as a recipe specifies: from whole images, tiles or several views.

        predictor = maskformer.Predictor.from_pretrained("runs/camvid", mode="panoptic")
        for prediction in predictor(["a.jpg", "b.jpg"]):
            ids, segments = prediction.panoptic

    Args:
        model: the model on its device. It is set to evaluation mode and otherwise not changed. If
            you change its weights later, make a new predictor.
        config: the recipe: thresholds, sizes, precision, views and tiles. `eval.semantic` and
            `eval.panoptic` are ignored; `mode` replaces them.
        info: the classes of the model.
        mode: what to predict: `"semantic"`, `"panoptic"` or `"instance"`.
        tta: average the class scores over the views of `eval.tta`; for `"semantic"` only.
        progress: prints, once per image size, how much images are shrunk. None: print nothing.

    Raises:
        UsageError: the mode is unknown; mode, tiles and test-time augmentation cannot be combined;
            or `info` has another number of classes than the model.
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
        if info.num_classes != model.num_classes:
            raise UsageError(
                f"info has {info.num_classes} classes, expected {model.num_classes} as in the model"
            )
        self.model = ready_to_predict(model, config.eval.precision)
        self.config = config
        self.info = info
        self.mode = mode
        self.tta = tta
        self.device = next(model.parameters()).device
        # Images are normalised as the configuration of the model says, not as the recipe says.
        self.processor = replace(
            ImageProcessor.from_config(config), normalize=Normalize.from_config(model.config)
        )
        self._progress = progress or Progress(enabled=False)
        self._views = AugmentedViews.from_config(config) if tta else None
        self._eval_config = config.eval.model_copy(
            update={"semantic": mode == "semantic", "panoptic": mode == "panoptic"}
        )
        side = config.predict.tile
        self._tiles = None if side is None else Tiles(side, config.predict.tile_overlap)
        self._reported_sizes: set[Size] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out `progress`: a copy, also in another process, prints nothing."""
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
        model_class: type[SegmentationModel] = MaskFormer,
    ) -> Self:
        """Load a model as `maskformer predict` does.

        Args:
            path_or_hub_id: a run, a model's folder or file, or a hub id.
            overrides: values that replace the recipe's, such as `"predict.tile=512"` or
                `"eval.precision=auto"`.
            mode: what to predict. None: `"panoptic"` if the recipe evaluates it, except with tiles
                or test-time augmentation; otherwise `"semantic"`.
            tta, progress: as in the constructor.
            device: the device of the model. None: the GPU if there is one, otherwise the CPU.
            model_class: the class of the model, if it is your own.

        Raises:
            CheckpointError: there is no checkpoint.
            HubError: the hub cannot be reached or has no such model.
            ConfigError: an override is invalid, or `predict.things` names an unknown class.
            UsageError: an override has no effect on predictions, or as in the constructor.
            ValueError: a file is damaged.
        """
        folder = resolve_checkpoint(given_path("path_or_hub_id", path_or_hub_id))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        warn = warnings.warn if progress is None else progress.warn
        model = model_class.from_pretrained(folder, warn=warn).to(device)
        config = load_prediction_recipe(folder, model, list(overrides))
        averaged = tta or config.predict.tile is not None
        mode = mode or ("panoptic" if config.eval.panoptic and not averaged else "semantic")
        info = load_info(folder, model)
        if config.predict.things is not None:
            info = with_things(info, config.predict.things)
        return cls(model, config, info, mode=mode, tta=tta, progress=progress)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> list[Prediction]:
        """Predict images, each in its original size.

        Args:
            images: one or several images of any size, as in `ImageProcessor`. Images with the same
                padded size run together, at most `eval.batch_size` at a time.

        Returns:
            One `Prediction` per image; its `numpy` method returns NumPy arrays.

        Raises:
            ValueError: there are no images, or one has a wrong shape or dtype.
            DatasetError: a file is not an image, or is so narrow that its resized form would not
                fit into memory.
            UsageError: the model or its classes do not support the mode.
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

    @property
    def categories(self) -> list[dict[str, Any]]:
        """The classes as COCO's `categories`: `id`, `name`, `isthing` and `color` of each."""
        return categories(self.info)

    def annotations(self, prediction: Prediction, min_score: float = 0.0) -> list[dict[str, Any]]:
        """Describe the objects of a prediction in COCO's formats; `json.dumps` takes the result.

        Args:
            prediction: the prediction of an image, with instances or a panoptic map.
            min_score: leave out objects with a lower score.

        Returns:
            For instances, `category_id`, `score`, `bbox` and `segmentation` (run lengths) of each,
            as in `instances.json`; for a panoptic map, its `segments_info`, as in `panoptic.json`.
            The ids are those of `categories`.

        Raises:
            UsageError: the prediction is a map of classes, which has no objects.
        """
        if prediction.instances is not None:
            found = describe_instances(prediction.instances, self.info)
        elif prediction.panoptic is not None:
            ids, segments = prediction.panoptic
            found = describe_segments(ids.cpu().numpy(), segments, self.info)
        else:
            raise UsageError(
                "prediction has no objects: expected one of mode 'instance' or 'panoptic'"
            )
        return [entry for entry in found if entry["score"] >= min_score]

    def overlay(self, image: ImageLike, prediction: Prediction) -> Image.Image:
        """Draw a prediction over its image, with a legend, as `maskformer predict` does.

        Instances are drawn if their score reaches `eval.object_mask_threshold`; `predict.opacity`
        applies.

        Args:
            image: the image that was predicted.
            prediction: its result.

        Raises:
            ValueError: the image has another size than the prediction.
        """
        [pixels] = self.processor.read(image)
        return to_pillow(draw_prediction(pixels, prediction, self.info, self.config))

    def prepare(self, sample: Sample) -> Prepared:
        """Make the network input on the CPU. Other threads may call this during `predict`.

        Raises:
            DatasetError: the image is so narrow that its resized form would not fit into memory.
        """
        if self._views is not None or self._count_tiles(sample) > 1:
            return Prepared(sample, None)
        return Prepared(sample, self.processor.batch([sample]))

    def batches(self, prepared: Iterable[Prepared]) -> Iterator[list[Prepared]]:
        """Group images into batches of at most `eval.batch_size` whose inputs have the same size.

        No image is padded because of another one. An image without an input is a batch of its own.
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
        """Predict one batch of `batches`.

        Returns:
            One `Prediction` per image.

        Raises:
            UsageError: the model or its classes do not support the mode.
        """
        inputs = [one.batch for one in prepared if one.batch is not None]
        if not inputs:
            return [self._predict_alone(one.sample) for one in prepared]
        for one, batch in zip(prepared, inputs, strict=True):
            self._report_reduction(one.sample, batch.image_sizes[0])
        return predict_batch(
            self.model,
            join_batches(inputs),
            self.info,
            self._eval_config,
            self.device,
            with_instances=self.mode == "instance",
        )

    def _predict_alone(self, sample: Sample) -> Prediction:
        if self._tiles is not None:
            return self._predict_tiles(sample, self._tiles)
        batch = EvalBatch(torch.empty(0), (), (), (sample.size,), (sample,))
        [prediction] = predict_batch(
            self.model, batch, self.info, self._eval_config, self.device, tta=self._views
        )
        return prediction

    def _count_tiles(self, sample: Sample) -> int:
        return 1 if self._tiles is None else self._tiles.count(sample.size)

    def _predict_tiles(self, sample: Sample, tiles: Tiles) -> Prediction:
        size = tiles.size(sample.size)
        count = tiles.count(sample.size)
        self._report(sample, f"is predicted in {count} tiles of {self._describe_tile(size)}")
        with self._progress.counting(f"tiles of {sample.name}", count) as counter:
            classes = semantic_map_of_tiles(
                self.model,
                sample.image,
                tiles,
                self.processor,
                self.device,
                resize_logits=self._eval_config.resize_logits,
                on_tile=lambda: counter.advance(1),
            )
        return Prediction(classes=classes)

    def _describe_tile(self, size: Size) -> str:
        """Describe the size of a tile, in the image and as network input."""
        pixels = f"{size[1]}x{size[0]}"
        short_side = self.config.data.test_short_side
        if short_side is None or min(size) <= short_side:
            return pixels
        height, width = resized_size(size, short_side, self.config.data.test_max_side)
        return f"{pixels}, each shrunk to {width}x{height}"

    def _report_reduction(self, sample: Sample, size: Size) -> None:
        """Report an image that is shrunk a lot, and how to shrink it less."""
        if min(sample.size) < LARGE_REDUCTION * min(size):
            return
        if self.mode == "semantic":
            side = max(self.config.data.test_short_side or 0, COARSEST_STRIDE)
            remedy = f"predict.tile={side} keeps its details"
        else:
            remedy = "a larger data.test_short_side keeps more of its details"
        self._report(sample, f"is shrunk to {size[1]}x{size[0]}; {remedy}")

    def _report(self, sample: Sample, text: str) -> None:
        if sample.size not in self._reported_sizes:
            self._reported_sizes.add(sample.size)
            height, width = sample.size
            self._progress.print(f"{escape(sample.name)}: {width}x{height} {text}")


def check_mode(mode: Mode, tta: bool, tile: int | None) -> None:
    """Check the mode, and that it can be combined with tiles or test-time augmentation.

    Raises:
        UsageError: the mode is unknown, its results cannot be averaged, or tiles and test-time
            augmentation are both requested.
    """
    if mode not in get_args(Mode):
        raise UsageError(f"mode must be {', '.join(map(repr, get_args(Mode)))}, got {mode!r:.60}")
    if tta and mode != "semantic":
        raise UsageError(
            f"test-time augmentation averages class scores, expected mode 'semantic', got '{mode}'"
        )
    if tile is not None and mode != "semantic":
        raise UsageError(
            f"predict.tile={tile} averages the class scores of tiles, expected mode 'semantic', "
            f"got '{mode}': segments of different tiles cannot be averaged; omit it, or predict "
            "with --mode semantic"
        )
    if tile is not None and tta:
        raise UsageError(f"predict.tile={tile} and --tta cannot be combined: omit one of them")
