"""Semantic, panoptic and instance inference: restatements, hand-made cases, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.backends import each_backend
from helpers.strategies import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mfkernels import (
    SegmentationView,
    average_semantic_segmentation,
    instance_segmentation,
    mask_logits,
    panoptic_segmentation,
    semantic_segmentation,
)

Size = tuple[int, int]


served_by = each_backend("semantic_segmentation", forced=False)


hypothesis_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
sides = st.integers(1, 12)
sizes = st.tuples(sides, sides)


@st.composite
def inference_cases(draw: st.DrawFn) -> tuple[Case, Size, list[Size], list[Size]]:
    """A case, the padded input, the images inside it, the sizes of the results."""
    counts = draw(st.lists(st.just(0), min_size=1, max_size=3).map(tuple))
    case = Case(
        layers=1,
        counts=counts,
        queries=draw(st.integers(1, 6)),
        classes=draw(st.integers(1, 5)),
        channels=3,
        low=draw(sizes),
        seed=draw(st.integers(0, 2**20)),
    )
    padded = draw(sizes)
    images = [(draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1]))) for _ in counts]
    return case, padded, images, [draw(sizes) for _ in counts]


def inputs(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    class_logits, embed, features = case.predictions(dtype)
    return 2 * class_logits[0], embed[0], features


def bilinear(maps: Tensor, size: Size) -> Tensor:
    """By hand, from the definition of `align_corners=False`: `[N, h, w]` to `[N, H, W]`."""
    for axis, count in zip((1, 2), size, strict=True):
        length = maps.shape[axis]
        place = ((torch.arange(count, dtype=torch.float64) + 0.5) * length / count - 0.5).clamp(
            min=0
        )
        low = place.floor().long()
        high = (low + 1).clamp(max=length - 1)
        shape = (-1, 1) if axis == 1 else (-1,)
        part = (place - low).reshape(shape).to(maps.dtype)
        maps = maps.index_select(axis, low) * (1 - part) + maps.index_select(axis, high) * part
    return maps


def restated_scores(
    class_logits: Tensor, logits: Tensor, padded: Size, image: Size, size: Size, resize: bool
) -> Tensor:
    """`[K, H, W]` of one image, the sum over queries written out."""
    probability = class_logits.softmax(1)[:, :-1]
    upsampled = bilinear(logits, padded)
    if resize:
        upsampled = bilinear(upsampled[:, : image[0], : image[1]], size)
    scores = (probability[:, :, None, None] * upsampled.sigmoid()[:, None]).sum(0)
    return scores if resize else bilinear(scores[:, : image[0], : image[1]], size)


class TestSemantic:
    @given(inference_cases(), st.booleans())
    @hypothesis_settings
    def test_equals_the_restatement(
        self, drawn: tuple[Case, Size, list[Size], list[Size]], resize: bool
    ) -> None:
        case, padded, images, results = drawn
        class_logits, embed, features = inputs(case, torch.float64)
        labels, scores = semantic_segmentation(
            class_logits,
            embed,
            features,
            results,
            input_size=padded,
            image_sizes=images,
            resize_logits=resize,
            return_scores=True,
        )
        logits = mask_logits(embed, features)
        for index, size in enumerate(results):
            expected = restated_scores(
                class_logits[index], logits[index], padded, images[index], size, resize
            )
            torch.testing.assert_close(scores[index], expected, rtol=1e-9, atol=1e-12)
            assert labels[index].dtype == torch.int64
            assert torch.equal(labels[index], scores[index].argmax(0))

    def test_one_size_for_all_gives_tensors(self) -> None:
        case = Case()
        class_logits, embed, features = inputs(case)
        labels = semantic_segmentation(class_logits, embed, features, (24, 20))
        assert isinstance(labels, Tensor)
        assert labels.shape == (2, 24, 20)
        again, scores = semantic_segmentation(
            class_logits, embed, features, [24, 20], return_scores=True
        )
        assert isinstance(scores, Tensor)
        assert scores.shape == (2, 4, 24, 20)
        assert torch.equal(again, labels)
        listed = semantic_segmentation(class_logits, embed, features, [(24, 20), (24, 20)])
        assert isinstance(listed, list)
        assert torch.equal(torch.stack(listed), labels)  # the input is 4 · (6, 5)

    def test_dense_logits_and_strides(self) -> None:
        class_logits, embed, features = inputs(Case(), torch.float64)
        _, scores = semantic_segmentation(class_logits, embed, features, (9, 9), return_scores=True)
        strided = features.to(memory_format=torch.channels_last)
        logits = mask_logits(embed, features)
        for masks in ((embed, strided), (logits, None)):
            _, same = semantic_segmentation(class_logits, *masks, (9, 9), return_scores=True)
            torch.testing.assert_close(same, scores)

    @pytest.mark.parametrize("resize", [False, True])
    def test_padding_does_not_change_an_image(self, resize: bool) -> None:
        """Nothing beyond the image reaches it, if the mask pixels that it touches are the same."""
        class_logits, embed, features = inputs(Case(counts=(0,)), torch.float64)
        wider = F.pad(features, (0, 3, 0, 2), value=7.0)
        options: dict[str, Any] = {"image_sizes": [(22, 18)], "resize_logits": resize}
        alone = semantic_segmentation(
            class_logits, embed, features, [(22, 18)], return_scores=True, **options
        )[1][0]
        padded = semantic_segmentation(
            class_logits, embed, wider, [(22, 18)], return_scores=True, **options
        )[1][0]
        torch.testing.assert_close(padded, alone)

    @pytest.mark.parametrize("resize", [False, True])
    def test_a_batch_equals_its_images(self, resize: bool) -> None:
        case = Case(counts=(0, 0, 0))
        class_logits, embed, features = inputs(case)
        images, results = [(24, 20), (13, 20), (24, 7)], [(11, 9), (30, 41), (24, 7)]
        options: dict[str, Any] = {"input_size": (24, 20), "resize_logits": resize}
        batch = semantic_segmentation(
            class_logits, embed, features, results, image_sizes=images, **options
        )
        for index in range(3):
            one = slice(index, index + 1)
            single = semantic_segmentation(
                class_logits[one],
                embed[one],
                features[one],
                results[one],
                image_sizes=images[one],
                **options,
            )
            assert torch.equal(single[0], batch[index])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        half = [tensor.to(dtype) for tensor in inputs(Case())]
        wide = [tensor.float() for tensor in half]
        labels, scores = semantic_segmentation(
            half[0], half[1], half[2], (24, 20), return_scores=True
        )
        with torch.autocast("cpu", dtype):
            expected = semantic_segmentation(wide[0], wide[1], wide[2], (24, 20))
        assert isinstance(scores, Tensor)
        assert scores.dtype == torch.float32
        assert torch.equal(labels, expected)

    def test_never_answers_no_object(self) -> None:
        class_logits, embed, features = inputs(Case())
        class_logits[..., -1] = 50
        labels = semantic_segmentation(class_logits, embed, features, (24, 20))
        assert isinstance(labels, Tensor)
        assert labels.max() < 4


class TestViews:
    @given(inference_cases(), inference_cases(), st.booleans(), st.booleans())
    @hypothesis_settings
    def test_equals_the_mean_of_restated_scores(
        self,
        first: tuple[Case, Size, list[Size], list[Size]],
        second: tuple[Case, Size, list[Size], list[Size]],
        resize: bool,
        dense: bool,
    ) -> None:
        results = first[3]
        views, expected = [], [torch.zeros(())] * len(results)
        for (case, padded, images, _), flipped in ((first, False), (second, True)):
            # The same images and classes; queries, resolution and padding are the view's own.
            same = Case(
                layers=1,
                counts=first[0].counts,
                queries=case.queries,
                classes=first[0].classes,
                channels=case.channels,
                low=case.low,
                seed=case.seed,
            )
            images = [images[i % len(images)] for i in range(len(results))]
            class_logits, embed, features = inputs(same, torch.float64)
            logits = mask_logits(embed, features)
            masks = (logits, None) if dense else (embed, features)
            views.append(SegmentationView(class_logits, *masks, padded, images, flipped))
            for index, size in enumerate(results):
                scores = restated_scores(
                    class_logits[index], logits[index], padded, images[index], size, resize
                )
                expected[index] = expected[index] + (scores.flip(2) if flipped else scores) / 2
        labels, scores = average_semantic_segmentation(
            views, results, resize_logits=resize, return_scores=True
        )
        for index in range(len(results)):
            torch.testing.assert_close(scores[index], expected[index], rtol=1e-9, atol=1e-12)
            assert torch.equal(labels[index], scores[index].argmax(0))

    def test_one_view_is_semantic_segmentation(self) -> None:
        view = SegmentationView(*inputs(Case()), (24, 20), [(20, 20), (24, 13)])
        found = average_semantic_segmentation([view], (31, 17))
        expected = semantic_segmentation(
            *view[:3], (31, 17), input_size=view.input_size, image_sizes=view.image_sizes
        )
        assert isinstance(found, Tensor)
        assert isinstance(expected, Tensor)
        assert torch.equal(found, expected)

    def test_a_mirrored_view_of_mirrored_masks_changes_nothing(self) -> None:
        class_logits, embed, features = inputs(Case(), torch.float64)
        plain = SegmentationView(class_logits, embed, features, (24, 20))
        mirrored = plain._replace(pixel_features=features.flip(-1), flipped=True)
        for size in ((24, 20), (40, 33)):
            expected = average_semantic_segmentation([plain], size, return_scores=True)[1]
            for views in ([mirrored], [plain, mirrored]):
                found = average_semantic_segmentation(views, size, return_scores=True)[1]
                torch.testing.assert_close(found, expected)

    def test_errors(self) -> None:
        class_logits, embed, features = inputs(Case())
        view = SegmentationView(class_logits, embed, features)
        with pytest.raises(ValueError, match="at least one view"):
            average_semantic_segmentation([], (3, 3))
        fewer_classes = view._replace(class_logits=class_logits[..., 1:])
        with pytest.raises(ValueError, match=r"agree in images and classes: .* view 1 \[2, 7, 4\]"):
            average_semantic_segmentation([view, fewer_classes], (3, 3))
        fewer_images = SegmentationView(class_logits[:1], embed[:1], features[:1])
        with pytest.raises(ValueError, match="agree in images"):
            average_semantic_segmentation([view, fewer_images], (3, 3))
        dense = SegmentationView(class_logits, mask_logits(embed, features), None)
        with pytest.raises(ValueError, match="either all views must have pixel_features or none"):
            average_semantic_segmentation([view, dense], (3, 3))
        with pytest.raises(ValueError, match="views must be on one device"):
            average_semantic_segmentation(
                [view, SegmentationView(*(x.to("meta") for x in view[:3]))], (3, 3)
            )
        with pytest.raises(ValueError, match="size must be one pair or 2 pairs"):
            average_semantic_segmentation([view], [(3, 3)])


class TestInstances:
    @given(inference_cases(), st.integers(1, 40), st.booleans())
    @hypothesis_settings
    def test_equals_the_restatement(
        self, drawn: tuple[Case, Size, list[Size], list[Size]], top_k: int, only_things: bool
    ) -> None:
        case, padded, images, results = drawn
        class_logits, embed, features = inputs(case, torch.float64)
        things = set(range(0, case.classes, 2))
        found = instance_segmentation(
            class_logits,
            embed,
            features,
            results,
            top_k=top_k,
            thing_classes=things if only_things else None,
            input_size=padded,
            image_sizes=images,
        )
        logits = mask_logits(embed, features)
        for index, (size, (masks, labels, scores, boxes)) in enumerate(
            zip(results, found, strict=True)
        ):
            upsampled = bilinear(logits[index], padded)
            upsampled = bilinear(upsampled[:, : images[index][0], : images[index][1]], size)
            probabilities = class_logits[index].softmax(1).tolist()
            pairs = sorted(
                ((q, k) for q in range(case.queries) for k in range(case.classes)),
                key=lambda pair: -probabilities[pair[0]][pair[1]],
            )[:top_k]
            pairs = [(q, k) for q, k in pairs if not only_things or k in things]
            assert labels.tolist() == [k for _, k in pairs]
            assert masks.shape == (len(pairs), *size)
            for (q, k), mask, score, box in zip(pairs, masks, scores, boxes, strict=True):
                inside = upsampled[q] > 0
                assert torch.equal(mask, inside)
                mean = upsampled[q][inside].sigmoid().sum() / (inside.sum() + 1e-6)
                assert score.item() == pytest.approx(probabilities[q][k] * mean.item())
                rows, columns = inside.nonzero().unbind(1)
                tight = [0, 0, 0, 0]
                if len(rows):
                    tight = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
                assert box.tolist() == tight

    def test_masks_some_at_a_time_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        predictions = inputs(Case())
        (whole, _) = instance_segmentation(*predictions, (24, 20), top_k=9)
        monkeypatch.setattr("mfkernels.ops.segmentation.instances._CHUNK_PIXELS", 1000)
        (pieces, _) = instance_segmentation(*predictions, (24, 20), top_k=9)
        for result, all_at_once in zip(pieces, whole, strict=True):
            torch.testing.assert_close(result, all_at_once)

    def test_inputs_are_left_alone(self) -> None:
        class_logits, embed, features = inputs(Case())
        logits = mask_logits(embed, features)
        before = logits.clone()
        instance_segmentation(class_logits, logits, None, [(6, 5), (6, 5)], input_size=(6, 5))
        assert torch.equal(logits, before)

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
            instance_segmentation(*inputs(Case()), (3, 3), top_k=0)
        with pytest.raises(ValueError, match=r"thing_classes must be in 0\.\.3, got \[-1\]"):
            instance_segmentation(*inputs(Case()), (3, 3), thing_classes=[-1])


BIG = 50.0
WIDTH = 10


def query(label: int, chance: float, *spans: tuple[int, int, float]) -> tuple[int, float, Tensor]:
    """A query on a line of pixels: spans `(from, to, logit)`, −50 elsewhere."""
    mask = torch.full((1, WIDTH), -BIG)
    for start, stop, logit in spans:
        mask[:, start:stop] = logit
    return label, chance, mask


def panoptic(
    *queries: tuple[int, float, Tensor], **options: Any
) -> tuple[list[int], list[dict[str, Any]]]:
    """Classes 0 and 1 are things, 2 and 3 stuff, 4 is no object; no resizing."""
    class_logits = torch.stack(
        [
            torch.full((5,), (1 - probability) / 4)
            .log()
            .index_fill(0, torch.tensor(label), torch.tensor(probability).log().item())
            for label, probability, _ in queries
        ]
    )
    masks = torch.stack([mask for *_, mask in queries])
    ((result, segments),) = panoptic_segmentation(
        class_logits[None].double(),
        masks[None].double(),
        None,
        (1, WIDTH),
        thing_classes={0, 1},
        **options,
    )
    assert result.dtype == torch.int32
    return result[0].tolist(), segments


class TestPanopticRules:
    def test_things_are_told_apart(self) -> None:
        result, segments = panoptic(query(1, 0.9, (0, 3, BIG)), query(1, 0.95, (5, 8, BIG)))
        # Where every mask is near zero the larger product wins all the same: no void is left.
        assert result == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
        assert [segment["id"] for segment in segments] == [1, 2]
        assert all(segment["isthing"] and segment["category_id"] == 1 for segment in segments)
        assert [segment["score"] for segment in segments] == pytest.approx([0.9, 0.95])

    def test_stuff_of_one_class_is_merged(self) -> None:
        result, segments = panoptic(
            query(3, 0.9, (0, 2, BIG)),
            query(0, 0.9, (2, 4, BIG)),
            query(3, 0.95, (4, 6, BIG)),
            query(2, 0.99, (6, 10, BIG)),
        )
        assert result == [1, 1, 2, 2, 1, 1, 3, 3, 3, 3]
        assert [(s["id"], s["category_id"], s["isthing"]) for s in segments] == [
            (1, 3, False),
            (2, 0, True),
            (3, 2, False),
        ]
        assert segments[0]["score"] == pytest.approx(0.9)

    def test_ids_stay_unique_after_a_merged_segment(self) -> None:
        """Stuff 2, thing 1, stuff 2, thing 0: elsewhere this has given 1, 2, 1, 2."""
        _, segments = panoptic(
            query(2, 0.9, (0, 2, BIG)),
            query(1, 0.9, (2, 4, BIG)),
            query(2, 0.9, (4, 6, BIG)),
            query(0, 0.9, (6, 10, BIG)),
        )
        assert [segment["id"] for segment in segments] == [1, 2, 3]

    def test_score_must_exceed_the_threshold(self) -> None:
        # 0.5 is exact: log and softmax of a power of two.
        half = query(1, 0.5, (0, 10, BIG))
        assert panoptic(half, object_mask_threshold=0.49)[0] == [1] * WIDTH
        class_logits = torch.tensor([[[0.0, 0.0]]])  # K = 1: class 0 and no object, tied at 0.5
        for threshold, kept in ((0.5, 0), (0.4999, 1)):
            ((_, segments),) = panoptic_segmentation(
                class_logits,
                torch.full((1, 1, 2, 2), BIG),
                None,
                (2, 2),
                thing_classes=[],
                object_mask_threshold=threshold,
            )
            assert len(segments) == kept

    def test_nothing_kept(self) -> None:
        assert panoptic(query(4, 0.99, (0, 10, BIG)), query(1, 0.6, (0, 10, BIG))) == (
            [0] * WIDTH,
            [],
        )

    def test_hidden_segments_are_dropped(self) -> None:
        """The second owns 3 of the 4 pixels where it is at least 0.5: a ratio of 0.75."""
        first = query(0, 0.99, (0, 5, BIG))
        second = query(1, 0.9, (4, 8, BIG))
        rest = query(2, 0.85, (8, 10, BIG))
        result, segments = panoptic(first, second, rest, overlap_threshold=0.8)
        assert result == [1, 1, 1, 1, 1, 0, 0, 0, 2, 2]
        assert [segment["category_id"] for segment in segments] == [0, 2]
        result, _ = panoptic(first, second, rest, overlap_threshold=0.75)
        assert result == [1, 1, 1, 1, 1, 2, 2, 2, 3, 3]  # equal to the threshold stays

    def test_a_mask_that_is_nowhere_half_is_dropped(self) -> None:
        result, segments = panoptic(query(0, 0.9, (0, 10, -0.01)), overlap_threshold=0.0)
        assert (result, segments) == ([0] * WIDTH, [])

    def test_a_mask_of_exactly_half_counts(self) -> None:
        result, segments = panoptic(query(0, 0.9, (0, 10, 0.0)))
        assert result == [1] * WIDTH
        assert len(segments) == 1

    def test_a_query_that_owns_nothing_is_dropped(self) -> None:
        _, segments = panoptic(
            query(0, 0.95, (0, 10, BIG)), query(1, 0.9, (0, 10, BIG)), overlap_threshold=0.0
        )
        assert [segment["category_id"] for segment in segments] == [0]

    def test_paint(self) -> None:
        """The first owns what nobody claims; Mask2Former paints only where a mask is sure."""
        queries = (query(0, 0.9, (0, 3, BIG), (3, 6, -1.0)), query(1, 0.9, (6, 10, BIG)))
        assert panoptic(*queries)[0] == [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
        assert panoptic(*queries, paint="mask2former")[0] == [1, 1, 1, 0, 0, 0, 2, 2, 2, 2]
        # The ratio counts all that a query owns, in both: 6 of 3 here.
        shared = (query(0, 0.9, (0, 3, 0.1), (3, 6, -1.0)), query(1, 0.99, (0, 2, BIG)))
        for paint in ("maskformer", "mask2former"):
            assert len(panoptic(*shared, paint=paint, overlap_threshold=1.0)[1]) == 2

    def test_mask2former_drops_what_it_cannot_paint(self) -> None:
        """The second owns pixels, but none of those where it is sure."""
        queries = (
            query(0, 0.99, (0, 4, BIG)),
            query(1, 0.9, (0, 4, 1.0), (4, 10, -1.0)),
        )
        options = {"overlap_threshold": 0.0}
        assert panoptic(*queries, **options)[0] == [1] * 4 + [2] * 6
        assert panoptic(*queries, **options, paint="mask2former")[0] == [1] * 4 + [0] * 6
        assert len(panoptic(*queries, **options, paint="mask2former")[1]) == 1


def restated_panoptic(
    class_logits: Tensor,
    logits: Tensor,
    things: set[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    sure: bool,
) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Pixel by pixel, in plain Python."""
    probabilities = class_logits.softmax(1).tolist()
    masks = logits.sigmoid().tolist()
    height, width = logits.shape[1:]
    kept = [
        q
        for q, row in enumerate(probabilities)
        if max(row) > object_mask_threshold and row.index(max(row)) < len(row) - 1
    ]
    result = [[0] * width for _ in range(height)]
    pixels = [(i, j) for i in range(height) for j in range(width)]
    owner = {
        (i, j): max(kept, key=lambda q: max(probabilities[q]) * masks[q][i][j])
        for i, j in pixels
        if kept
    }
    segments: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}
    for q in kept:
        owned = [p for p in pixels if owner[p] == q]
        confident = [(i, j) for i, j in pixels if masks[q][i][j] >= 0.5]
        painted = [p for p in owned if not sure or p in confident]
        if not confident or not painted or len(owned) / len(confident) < overlap_threshold:
            continue
        label = probabilities[q].index(max(probabilities[q]))
        number = stuff.get(label)
        if number is None:
            number = len(segments) + 1
            segments.append(
                {
                    "id": number,
                    "isthing": label in things,
                    "category_id": label,
                    "score": max(probabilities[q]),
                }
            )
            if label not in things:
                stuff[label] = number
        for i, j in painted:
            result[i][j] = number
    return result, segments


class TestPanoptic:
    @given(
        inference_cases(),
        st.sampled_from([0.0, 0.3, 0.5]),
        st.sampled_from([0.0, 0.5, 0.8]),
        st.booleans(),
    )
    @hypothesis_settings
    def test_equals_the_restatement(
        self,
        drawn: tuple[Case, Size, list[Size], list[Size]],
        object_mask_threshold: float,
        overlap_threshold: float,
        sure: bool,
    ) -> None:
        case, padded, images, results = drawn
        predictions = inputs(case, torch.float64)
        class_logits, embed, features = predictions
        things = set(range(0, case.classes, 2))
        found = panoptic_segmentation(
            *predictions,
            results,
            thing_classes=things,
            object_mask_threshold=object_mask_threshold,
            overlap_threshold=overlap_threshold,
            input_size=padded,
            image_sizes=images,
            paint="mask2former" if sure else "maskformer",
        )
        for index, (result, segments) in enumerate(found):
            logits = mask_logits(embed, features)[index][None]
            logits = F.interpolate(logits, padded, mode="bilinear")
            logits = logits[..., : images[index][0], : images[index][1]]
            logits = F.interpolate(logits, results[index], mode="bilinear")[0]
            expected, expected_segments = restated_panoptic(
                class_logits[index],
                logits,
                things,
                object_mask_threshold,
                overlap_threshold,
                sure,
            )
            assert result.tolist() == expected
            assert [
                {**segment, "score": pytest.approx(segment["score"])} for segment in segments
            ] == expected_segments
            # Ids count from 1, and each of them is somewhere on the map.
            assert [segment["id"] for segment in segments] == list(range(1, len(segments) + 1))
            assert set(result.flatten().tolist()) - {0} == {s["id"] for s in segments}
            stuff = [s["category_id"] for s in segments if not s["isthing"]]
            assert len(stuff) == len(set(stuff))

    def test_a_batch_equals_its_images(self) -> None:
        case = Case(counts=(0, 0, 0), low=(9, 9))
        class_logits, embed, features = inputs(case)
        images, results = [(24, 20), (13, 20), (24, 7)], [(11, 9), (30, 41), (24, 7)]
        options: dict[str, Any] = {
            "thing_classes": [0, 1],
            "object_mask_threshold": 0.3,
            "overlap_threshold": 0.1,
            "input_size": (24, 20),
        }
        batch = panoptic_segmentation(
            class_logits, embed, features, results, image_sizes=images, **options
        )
        assert any(segments for _, segments in batch)
        for index, (result, segments) in enumerate(batch):
            one = slice(index, index + 1)
            ((single, single_segments),) = panoptic_segmentation(
                class_logits[one],
                embed[one],
                features[one],
                results[one],
                image_sizes=images[one],
                **options,
            )
            assert torch.equal(single, result)
            assert single_segments == segments


@pytest.mark.parametrize(
    ("error", "match", "size", "options"),
    [
        (ValueError, r"size must be one pair or 2 pairs .* got \[\(3, 3\)\]", [(3, 3)], {}),
        (ValueError, r"size must be one pair or 2 pairs .* got 64", 64, {}),
        (ValueError, "size must be one pair or 2 pairs", (0, 3), {}),
        (ValueError, "size must be one pair or 2 pairs", [(3, 3), (3, -1)], {}),
        (ValueError, "input_size must be 1 pairs", (3, 3), {"input_size": (3, 0)}),
        (ValueError, "image_sizes must be 2 pairs", (3, 3), {"image_sizes": [(3, 3)]}),
        (
            ValueError,
            r"image_sizes must fit into the input \(3, 3\), got \(4, 3\)",
            (3, 3),
            {"image_sizes": [(3, 3), (4, 3)]},
        ),
    ],
)
def test_wrong_sizes(
    error: type[Exception], match: str, size: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=match):
        semantic_segmentation(*inputs(Case()), size, **options)
    with pytest.raises(error, match=match):
        panoptic_segmentation(*inputs(Case()), size, thing_classes=[0], **options)


def test_errors() -> None:
    class_logits, embed, features = inputs(Case())
    with pytest.raises(ValueError, match="without a layer axis; got mask_embed"):
        semantic_segmentation(class_logits, embed[None], features, (3, 3))
    with pytest.raises(ValueError, match=r"at least one image, got mask_embed \[0, 7, 5\]"):
        semantic_segmentation(class_logits[:0], embed[:0], features[:0], (3, 3))
    with pytest.raises(TypeError, match="views must hold SegmentationView, got tuple"):
        average_semantic_segmentation([(class_logits, embed, features)], (3, 3))  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"class_logits must be \[2, 7, K\+1\]"):
        semantic_segmentation(class_logits[:, :6], embed, features, (3, 3))
    with pytest.raises(TypeError, match="class_logits must have a floating"):
        semantic_segmentation(class_logits.int(), embed, features, (3, 3))
    with pytest.raises(ValueError, match="class_logits must be on cpu"):
        semantic_segmentation(class_logits.to("meta"), embed, features, (3, 3))
    with pytest.raises(ValueError, match=r"thing_classes must be in 0\.\.3, got \[1, 4\]"):
        panoptic_segmentation(class_logits, embed, features, (3, 3), thing_classes=[4, 1])
    with pytest.raises(ValueError, match="paint must be one of 'maskformer', 'mask2former'"):
        panoptic_segmentation(
            class_logits,
            embed,
            features,
            (3, 3),
            thing_classes=[],
            paint="oneformer",  # type: ignore[arg-type]
        )
