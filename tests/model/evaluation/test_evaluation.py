"""Batches, views and the figures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.model_cases import randomise, tiny_model
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskformer import ImageProcessor
from maskformer.config.load import load_config
from maskformer.config.schema import EvalConfig, ViewsConfig
from maskformer.data import DatasetInfo, EvalLoader, EvalTransform, Normalize, Sample
from maskformer.data.palette import palette
from maskformer.errors import ConfigError
from maskformer.evaluation.evaluate import evaluate
from maskformer.inference.prediction import Prediction, predict_batch
from maskformer.inference.test_time_augmentation import AugmentedViews, semantic_map_of_views
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import MaskOutputs
from maskformer.output.console import Progress
from mfkernels import backend, use_backend

CPU = torch.device("cpu")
THINGS = frozenset({1, 4, 5})
INFO = DatasetInfo(tuple("abcdefg"), THINGS, palette(7), tuple(range(10, 80, 10)))
SIZES = [(48, 70), (61, 40), (64, 64), (33, 95), (50, 66), (64, 96), (96, 96), (40, 40)]
EVAL = EvalConfig(panoptic=True, object_mask_threshold=0.0, overlap_threshold=0.3)


class Images:
    """A data set of noise."""

    info = INFO

    def __len__(self) -> int:
        return len(SIZES)

    @property
    def num_images(self) -> int:
        return len(self)

    def __getitem__(self, index: int) -> Sample:
        random = torch.Generator().manual_seed(index)
        size = SIZES[index]
        rows = torch.arange(size[0])[:, None] * 3 // size[0]
        return Sample(
            image=torch.randint(0, 256, (3, *size), generator=random, dtype=torch.uint8),
            segments=(rows + torch.zeros(size, dtype=torch.int64)).int() - 1,
            labels=torch.tensor([1, 2]),
            crowd=torch.tensor([False, False]),
            name=f"folder/{index}",
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def build(architecture: str) -> SegmentationModel:
    """An untrained model whose queries differ, in double precision: there, sums in another order
    change no class.
    """
    torch.manual_seed(3)
    model = tiny_model(architecture=architecture).double()
    randomise(model)
    for name, spread in (("class_embed", 3.0), ("mask_embed", 1.0)):
        if hasattr(model, name):
            queries = 9 if architecture == "maskformer" else 7
            offset = spread * torch.randn(queries, 8 if name == "class_embed" else 24)
            getattr(model, name).register_forward_hook(
                lambda _, __, output, offset=offset: output + offset
            )
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model.eval()


@pytest.fixture(scope="module", params=["maskformer", "per_pixel", "per_pixel_plus"])
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    return build(request.param)


@pytest.fixture(scope="module")
def maskformer() -> SegmentationModel:
    return build("maskformer")


def predict(
    model: SegmentationModel, batch_size: int, *, short_side: int | None = None, step: int = 32
) -> list[Prediction]:
    normalize = Normalize(size_divisibility=step)
    loader = EvalLoader(Images(), ImageProcessor(short_side, 120, normalize).batch, batch_size)
    return [
        prediction
        for batch in loader
        for prediction in predict_batch(model, batch, INFO, EVAL, CPU)
    ]


@pytest.mark.parametrize("step", [32, 0])
@pytest.mark.parametrize("short_side", [None, 56])
def test_batched_results_equal_those_of_single_images(
    model: SegmentationModel, short_side: int | None, step: int
) -> None:
    alone = predict(model, 1, short_side=short_side, step=step)
    assert any(len(prediction.classes.unique()) > 1 for prediction in alone)  # type: ignore[union-attr]
    for batch_size in (3, 8):
        together = predict(model, batch_size, short_side=short_side, step=step)
        for one, other, size in zip(alone, together, SIZES, strict=True):
            assert one.classes is not None
            assert one.panoptic is not None
            assert other.panoptic is not None
            assert one.classes.shape == size
            assert torch.equal(one.classes, other.classes)
            assert torch.equal(one.panoptic[0], other.panoptic[0])
            assert [s["category_id"] for s in one.panoptic[1]] == [
                s["category_id"] for s in other.panoptic[1]
            ]


def test_the_same_input_size_runs_in_one_batch(maskformer: SegmentationModel) -> None:
    seen: list[tuple[int, ...]] = []
    hook = maskformer.register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape))
    )
    try:
        predict(maskformer, 8)
    finally:
        hook.remove()
    normalize = Normalize()
    inputs = [normalize.padded_size([size]) for size in SIZES]
    assert inputs.count((64, 96)) == 4
    assert sorted(seen) == sorted((inputs.count(size), 3, *size) for size in set(inputs))


def scores_of(model: SegmentationModel, image: Tensor, size: tuple[int, int]) -> Tensor:
    """`[K, H, W]`, as the official code has it: every query and class in full size."""
    height, width = image.shape[-2:]
    pixel_values = Normalize()([image])
    with torch.no_grad():
        outputs = model(pixel_values)
    resize = partial(F.interpolate, mode="bilinear", align_corners=False)
    if "pixel_logits" in outputs:
        scores = resize(outputs["pixel_logits"][-1], scale_factor=4)
    else:
        embed, features = outputs["mask_embed"][-1], outputs["pixel_features"]
        logits = torch.einsum("bqc,bchw->bqhw", embed, features)
        masks = resize(logits, pixel_values.shape[-2:]).sigmoid()
        classes = outputs["class_logits"][-1].softmax(-1)[..., :-1]
        scores = torch.einsum("bqk,bqhw->bkhw", classes, masks)
    return resize(scores[..., :height, :width], size)[0]


@pytest.mark.parametrize("from_original", [False, True])
@pytest.mark.parametrize("index", [0, 3, 6])
def test_views_are_averaged_as_scores(
    model: SegmentationModel, index: int, from_original: bool
) -> None:
    views = AugmentedViews(
        (0.8, 1.0, 1.6), flip=True, short_side=50, max_side=80, from_original=from_original
    )
    original = Images()[index].image
    image = original if from_original else EvalTransform(50, 80)(original)
    mean = torch.zeros(7, *SIZES[index])
    for short_side in (40, 50, 80):
        resized = EvalTransform(short_side, 128)(image)
        mean = mean + scores_of(model, resized, SIZES[index])
        mean = mean + scores_of(model, resized.flip(-1), SIZES[index]).flip(-1)
    found = semantic_map_of_views(model, original, views, CPU, resize_logits=False)
    assert len(found.unique()) > 1
    assert torch.equal(found, mean.argmax(0))


@pytest.mark.parametrize(
    ("recipe", "short_sides", "max_side"),
    [
        ("ade20k/r50", [256, 384, 512, 640, 768, 896], 3584),
        ("ade20k/swin_b", [320, 480, 640, 800, 960, 1120], 4480),
        ("ade20k_panoptic/r50_6enc", [320, 480, 640, 800, 960, 1120], 4480),
        ("coco_panoptic/r50_6enc", list(range(400, 1201, 100)), 4000),
    ],
)
def test_the_official_sizes(recipe: str, short_sides: list[int], max_side: int) -> None:
    """docs/facts.md, Inference."""
    views = AugmentedViews.from_config(load_config(recipe))
    square, long = torch.zeros(3, 64, 64).byte(), torch.zeros(3, 8, 8000).byte()
    assert not views.from_original
    sizes = [resized.shape[-2:] for resized, _ in views(square)]
    assert sizes == [(side, side) for side in short_sides for _ in range(2)]
    assert {resized.shape[-1] for resized, _ in views(long)} == {max_side}
    assert [flipped for _, flipped in views(square)] == [False, True] * len(short_sides)


def test_views_are_made_of_the_test_size() -> None:
    """Of 100x133 at a test size of 50 comes 50x67 (66.5 rounded up), and of that 100x134, not
    100x133; and what the first resize lost stays lost.
    """
    original = torch.zeros(3, 100, 133, dtype=torch.uint8)
    original[:, ::2] = 255
    ours, official = (
        AugmentedViews((2.0,), flip=False, short_side=50, from_original=from_original)
        for from_original in (True, False)
    )
    [(view, _)] = ours(original)
    assert torch.equal(view, original)
    [(view, _)] = official(original)
    assert view.shape == (3, 100, 134)
    # A triangle of two pixels on either side of the middle, over stripes: 127.5 everywhere inside.
    assert (view[:, 4:-4].int() - 127).abs().max() <= 1


def test_the_two_kinds_of_sizes_exclude_each_other() -> None:
    values = ViewsConfig(short_sides=(40, 50)).model_dump()
    assert "scales" not in values
    assert ViewsConfig(**values).short_sides == (40, 50)
    with pytest.raises(ValidationError, match="scales and short_sides are both given"):
        ViewsConfig(scales=(1.0,), short_sides=(40,))


def test_sizes_in_pixels_need_no_test_size() -> None:
    views = AugmentedViews((1.0,), False, None, None, short_sides=(10, 40), longest_side=50)
    sizes = [tuple(view.shape[-2:]) for view, _ in views(torch.zeros(3, 20, 30).byte())]
    assert sizes == [(10, 15), (33, 50)]


def test_images_of_their_own_size_are_scaled_by_it() -> None:
    views = AugmentedViews((0.5, 2.0), flip=False, short_side=None, max_side=30)
    sizes = [tuple(resized.shape[-2:]) for resized, _ in views(torch.zeros(3, 20, 31).byte())]
    assert sizes == [(10, 16), (40, 62)]


def test_one_plain_view_is_no_augmentation(maskformer: SegmentationModel) -> None:
    views = AugmentedViews((1.0,), flip=False, short_side=56, max_side=120)
    config = EVAL.model_copy(update={"panoptic": False})
    [batch] = EvalLoader(Images(), ImageProcessor(56, 120).batch, 8)
    plain, viewed = (
        predict_batch(maskformer, batch, INFO, config, CPU, tta=tta) for tta in (None, views)
    )
    for one, other in zip(plain, viewed, strict=True):
        assert one.classes is not None
        assert other.classes is not None
        assert torch.equal(one.classes, other.classes)
        assert other.panoptic is None


def test_segments_come_from_the_plain_image(maskformer: SegmentationModel) -> None:
    views = AugmentedViews((0.5,), flip=True, short_side=None)
    [batch] = EvalLoader(Images(), ImageProcessor(None, None).batch, 8)
    plain, viewed = (
        predict_batch(maskformer, batch, INFO, EVAL, CPU, tta=tta) for tta in (None, views)
    )
    for one, other in zip(plain, viewed, strict=True):
        assert one.panoptic is not None
        assert other.panoptic is not None
        assert torch.equal(one.panoptic[0], other.panoptic[0])
    assert any(not torch.equal(a.classes, b.classes) for a, b in zip(plain, viewed, strict=True))  # type: ignore[arg-type]


def test_many_queries_wait_as_embeddings() -> None:
    """All views stay until the last one ran: in the smaller form."""
    few, many = (
        MaskOutputs(
            class_logits=torch.zeros(3, 1, queries, 5),
            mask_embed=torch.randn(3, 1, queries, 4),
            pixel_features=torch.randn(1, 4, 6, 8),
        ).view((24, 32), (20, 32), flipped=True)
        for queries in (4, 5)
    )
    assert few.mask_embed.shape == (1, 4, 6, 8)
    assert few.pixel_features is None
    assert many.mask_embed.shape == (1, 5, 4)
    assert many.pixel_features is not None
    assert many.class_logits.shape == (1, 5, 5)


def test_an_evaluation_reports_every_image(maskformer: SegmentationModel) -> None:
    loader = EvalLoader(Images(), ImageProcessor(None, None).batch, 3)
    seen = []
    evaluation = evaluate(
        maskformer,
        loader,
        INFO,
        EVAL,
        CPU,
        Progress(enabled=False),
        on_prediction=lambda sample, prediction: seen.append((sample.name, prediction)),
    )
    assert [name for name, _ in seen] == [f"folder/{index}" for index in range(len(SIZES))]
    assert all(prediction.classes is not None for _, prediction in seen)
    assert {"miou", "pq", "pq_things", "pq_stuff"} <= set(evaluation.metrics)
    assert len(evaluation.pictures) == 8


def test_a_model_is_in_its_mode_again_after_an_error(maskformer: SegmentationModel) -> None:
    def interrupt() -> None:
        assert not maskformer.training
        raise InterruptedError

    loader = EvalLoader(Images(), ImageProcessor(None, None).batch, 3)
    progress = Progress(enabled=False)
    for training in (True, False):
        maskformer.train(training)
        with pytest.raises(InterruptedError):
            evaluate(maskformer, loader, INFO, EVAL, CPU, progress, between_batches=interrupt)
        assert maskformer.training == training


def test_a_single_class_has_all_figures() -> None:
    class Sky(Images):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return replace(sample, labels=torch.zeros_like(sample.labels))

    info = DatasetInfo(("sky",), frozenset(), palette(1), (0,))
    loader = EvalLoader(Sky(), ImageProcessor(None, None).batch)
    model = tiny_model(num_classes=1)
    evaluation = evaluate(model, loader, info, EVAL, CPU, Progress(enabled=False))
    assert sorted(evaluation.per_class) == ["accuracy", "iou", "pq", "rq", "sq"]
    assert all(len(values) == 1 for values in evaluation.per_class.values())
    assert {"miou", "fwiou", "macc", "pacc", "pq", "pq_stuff"} <= set(evaluation.metrics)
    assert not any(name.endswith("_per_class") for name in evaluation.metrics)


def test_views_without_scores_are_refused(maskformer: SegmentationModel) -> None:
    config = EVAL.model_copy(update={"semantic": False})
    loader = EvalLoader(Images(), ImageProcessor(None, None).batch)
    views = AugmentedViews((1.0,), flip=True, short_side=None)
    with pytest.raises(ConfigError, match=r"eval\.semantic is off"):
        evaluate(maskformer, loader, INFO, config, CPU, Progress(enabled=False), tta=views)


def test_instances_of_a_batch(maskformer: SegmentationModel) -> None:
    [batch] = EvalLoader(Images(), ImageProcessor(None, None).batch, 8)
    nothing = EVAL.model_copy(update={"semantic": False, "panoptic": False})
    found = predict_batch(maskformer, batch, INFO, nothing, CPU, with_instances=True)
    for prediction, size in zip(found, SIZES, strict=True):
        assert prediction.classes is None
        assert prediction.panoptic is None
        assert prediction.instances is not None
        assert prediction.instances.masks.shape[1:] == size
        assert set(prediction.instances.labels.tolist()) <= THINGS
        drawn = prediction.segmentation(min_score=0.1)
        assert len(drawn.labels) == int((prediction.instances.scores >= 0.1).sum())


@pytest.mark.parametrize(
    ("architecture", "things", "message"),
    [
        ("per_pixel", THINGS, "need a model with masks"),
        ("maskformer", frozenset(), "need thing classes"),
    ],
)
def test_instances_that_cannot_be(architecture: str, things: frozenset[int], message: str) -> None:
    [batch] = EvalLoader(Images(), ImageProcessor(None, None).batch, 8)
    with pytest.raises(ValueError, match=message):
        predict_batch(
            build(architecture),
            batch,
            replace(INFO, things=things),
            EVAL.model_copy(update={"panoptic": False}),
            CPU,
            with_instances=True,
        )


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return result


@pytest.mark.parametrize("tta", [None, AugmentedViews((0.5, 1.0), flip=True, short_side=None)])
@pytest.mark.parametrize("architecture", ["maskformer", "per_pixel"])
def test_no_tensor_of_classes_by_pixels(
    monkeypatch: pytest.MonkeyPatch, architecture: str, tta: AugmentedViews | None
) -> None:
    """Not in the model's inference, not in the metrics; native kernels hold panels of pixels."""
    reason = backend.why_not_native("semantic_segmentation", "cpu")
    if architecture == "maskformer" and reason is not None:
        pytest.skip(f"needs the native kernels: {reason}")
    monkeypatch.setattr("maskformer.modeling.outputs.ELEMENTS_AT_ONCE", 2**16)
    classes, size = 300, (192, 256)
    info = DatasetInfo(
        tuple(map(str, range(classes))), frozenset({3}), palette(classes), tuple(range(classes))
    )
    model = tiny_model(architecture=architecture, num_classes=classes)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    segments = torch.zeros(size, dtype=torch.int32)
    sample = Sample(image, segments, torch.tensor([7]), torch.tensor([False]), "one")
    loader = EvalLoader([sample], ImageProcessor(None, None).batch)  # type: ignore[arg-type]
    config = EVAL.model_copy(update={"pictures": 0})
    with use_backend("auto"), LargestTensor() as largest:
        evaluate(model, loader, info, config, CPU, Progress(enabled=False), tta=tta)
    assert largest.elements >= classes  # it did look
    assert largest.elements < classes * size[0] * size[1] / 8
