"""Tiles of large photos: where they lie, how their scores are blended, what comes out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.model_cases import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mfkernels
from maskformer.data import Normalize
from maskformer.inference import tiles as module
from maskformer.inference.image_processor import ImageProcessor
from maskformer.inference.tiles import Tiles, blend, semantic_map_of_tiles, window
from maskformer.modeling.outputs import as_outputs

CPU = torch.device("cpu")


def photo(height: int, width: int) -> Tensor:
    """Large patches, so that neighbouring tiles see different things."""
    patches = torch.randint(0, 256, (1, 3, height // 16 + 1, width // 16 + 1))
    return nn.functional.interpolate(patches.float(), (height, width), mode="bilinear")[0].byte()


class Colours(nn.Module):
    """Scores by the colours around a pixel, and by the mean colour of all that it is shown."""

    num_classes = 5

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.per_pixel = architecture == "per_pixel"
        self.features = nn.Conv2d(3, self.num_classes if self.per_pixel else 8, 4, stride=4)
        self.classes, self.masks = torch.randn(6, 6) * 3, torch.randn(6, 8) * 3

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        features = self.features(pixel_values)
        features = features - features.mean((2, 3), keepdim=True) / 2
        if self.per_pixel:
            return {"pixel_logits": features[None]}
        return {
            "class_logits": self.classes[None, None],
            "mask_embed": self.masks[None, None],
            "pixel_features": features,
        }


def label(
    model: Any, image: Tensor, tiles: Tiles, processor: ImageProcessor, **more: Any
) -> Tensor:
    options = {"resize_logits": False, **more}
    return semantic_map_of_tiles(model, image, tiles, processor, CPU, **options)


@given(st.integers(1, 2000), st.integers(32, 500), st.floats(0, 0.75))
def test_tiles_cover_an_image(length: int, side: int, overlap: float) -> None:
    tiles = Tiles(side, overlap)
    starts = tiles.starts(length)
    extent = tiles.size((length, length))[0]
    assert starts[0] == 0
    assert starts[-1] + extent == length
    assert len(starts) == 1 or length > side
    for one, other in pairwise(starts):
        assert one < other
        assert one + extent - other >= side * overlap - 1
    assert tiles.count((length, length)) == len(starts) ** 2


def test_equal_scores_blend_to_themselves() -> None:
    scores = torch.rand(5, 7, 9)
    weights = [torch.rand(7, 9) + 1e-6 for _ in range(4)]
    torch.testing.assert_close(blend([scores] * 4, weights), scores, rtol=3e-7, atol=0)
    assert torch.equal(blend([scores], weights[:1]), scores)
    corner = window((512, 512))[:1, :1]  # the smallest weight there is
    assert torch.equal(blend([scores[:, :1, :1]], [corner]), scores[:, :1, :1])


def test_weights_fall_towards_the_edges() -> None:
    weights = window((8, 6))
    assert (weights > 0).all()
    torch.testing.assert_close(weights, weights.flip(0, 1))
    assert (weights[:4].diff(dim=0) > 0).all()
    assert (weights[:, :3].diff(dim=1) > 0).all()


def naive(model: Any, image: Tensor, tiles: Tiles, processor: ImageProcessor) -> Tensor:
    """The same with the scores of the whole image in memory, in double precision."""
    height, width = image.shape[-2:]
    rows, columns = tiles.size((height, width))
    total = torch.zeros(model.num_classes, height, width, dtype=torch.float64)
    weights = window((rows, columns)).double()
    for top in tiles.starts(height):
        for left in tiles.starts(width):
            here = (..., slice(top, top + rows), slice(left, left + columns))
            seen = processor(image[here])
            outputs: Any = as_outputs(model(seen["pixel_values"]))
            view = outputs.view(
                tuple(seen["pixel_values"].shape[-2:]), seen["image_sizes"][0], flipped=False
            )
            scores = outputs.scores(view, (rows, columns), False, slice(0, model.num_classes))
            total[here] += scores.double() * weights
    norm = torch.zeros(height, width, dtype=torch.float64)
    for top in tiles.starts(height):
        for left in tiles.starts(width):
            norm[top : top + rows, left : left + columns] += weights
    return total / norm


@pytest.mark.parametrize("architecture", ["maskformer", "per_pixel"])
@pytest.mark.parametrize("at_once", [1, 2**26])
@pytest.mark.parametrize(
    ("size", "side", "overlap", "short_side"),
    [((130, 200), 64, 0.25, None), ((70, 150), 96, 0.6, 48), ((96, 50), 64, 0.0, None)],
)
def test_the_best_class_of_blended_scores(
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    at_once: int,
    size: tuple[int, int],
    side: int,
    overlap: float,
    short_side: int | None,
) -> None:
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    model = Colours(architecture)
    processor = ImageProcessor(short_side, None)
    image, tiles = photo(*size), Tiles(side, overlap)
    seen = []
    with torch.inference_mode():
        scores = naive(model, image, tiles, processor)
    found = label(model, image, tiles, processor, on_tile=lambda: seen.append(1))
    assert len(seen) == tiles.count(size)
    assert found.shape == size
    assert len(found.unique()) > 1
    chosen = scores.gather(0, found[None])[0]
    assert (scores.amax(0) - chosen).max() < 1e-5 * scores.abs().max()
    assert (found == scores.argmax(0)).float().mean() > 0.999


def test_never_more_than_the_scores_of_some_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def spy(scores: list[Tensor], weights: list[Tensor]) -> Tensor:
        nonlocal largest
        held = {part.untyped_storage().data_ptr(): part.untyped_storage() for part in scores}
        largest = max(largest, sum(storage.nbytes() for storage in held.values()))
        return blend(scores, weights)

    monkeypatch.setattr(module, "blend", spy)
    model = tiny_model()
    processor = ImageProcessor(None, None, Normalize.from_config(model.config))
    label(model, photo(200, 64 * 20), Tiles(64, 0.25), processor)
    assert 0 < largest <= 4 * 4 * model.num_classes * 64 * 64


def test_classes_score_alike_alone_and_together() -> None:
    outputs: Any = as_outputs(tiny_model()(torch.rand(1, 3, 64, 64)))
    view = outputs.view((64, 64), (64, 48), flipped=False)
    together = outputs.scores(view, (32, 24), False, slice(0, 7))
    _, expected = mfkernels.average_semantic_segmentation([view], (32, 24), return_scores=True)
    assert torch.equal(together, expected[0])
    parts = [outputs.scores(view, (32, 24), False, slice(k, k + 3)) for k in (0, 3, 6)]
    torch.testing.assert_close(torch.cat(parts), together)
