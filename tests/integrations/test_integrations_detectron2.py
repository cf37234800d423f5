"""Matcher and criterion with the official signatures: golden numbers, and Mask2Former's points."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden
from helpers.official.criterion import criterion as official
from torch import Tensor, nn
from torch.nn import functional as F

from mfkernels import use_backend
from mfkernels.integrations.detectron2 import HungarianMatcher, SetCriterion

WEIGHTS = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}


def maskformer(matcher: nn.Module | None = None, **options: Any) -> SetCriterion:
    arguments: dict[str, Any] = {"losses": ["labels", "masks"], **options}
    return SetCriterion(
        golden.NUM_CLASSES, matcher or HungarianMatcher(1, 20, 1), WEIGHTS, 0.1, **arguments
    )


def test_losses_are_the_official_ones() -> None:
    losses = maskformer()(golden.official_outputs(), golden.targets())
    assert list(losses) == list(golden.LOSSES)
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(golden.LOSSES[name], abs=2e-6), name


@pytest.mark.parametrize(
    ("empty", "expected"),
    [((1,), golden.LOSSES_WITHOUT_IMAGE_1), ((0, 1), golden.LOSSES_WITHOUT_SEGMENTS)],
)
def test_images_without_segments(empty: tuple[int, ...], expected: dict[str, float]) -> None:
    outputs = golden.official_outputs(aux=False)
    leaves = [value.requires_grad_() for value in outputs.values()]
    losses = maskformer()(outputs, golden.targets(empty=empty))
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(expected[name], abs=2e-6), name
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_matcher_gives_pairs_on_the_cpu() -> None:
    (first, second) = HungarianMatcher(1, 20, 1)(golden.official_outputs(), golden.targets())
    assert [x.tolist() for x in first] == [[3, 4], [1, 0]]
    assert [x.tolist() for x in second] == [[0, 3, 4], [0, 1, 2]]
    assert all(x.dtype == torch.int64 and x.device.type == "cpu" for x in (*first, *second))


def test_any_matcher_of_the_official_signature() -> None:
    class Theirs(nn.Module):
        def forward(self, outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
            return HungarianMatcher(1, 20, 1)(outputs, targets)

    losses = maskformer(Theirs())(golden.official_outputs(), golden.targets())
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(golden.LOSSES[name], abs=2e-6), name


def test_a_forward_that_a_subclass_changes_is_called() -> None:
    class Mine(HungarianMatcher):
        def forward(self, outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
            calls.append(self)
            return super().forward(outputs, targets)

    calls: list[nn.Module] = []
    hooked = HungarianMatcher(1, 20, 1)
    hooked.register_forward_hook(lambda module, *_: calls.append(module))
    for matcher in (Mine(1, 20, 1), hooked):
        losses = maskformer(matcher)(golden.official_outputs(), golden.targets())
        assert calls == [matcher] * 2
        calls.clear()
        for name, loss in losses.items():
            assert float(loss.detach()) == pytest.approx(golden.LOSSES[name], abs=2e-6), name


@pytest.mark.parametrize("num_points", [0, 20])
def test_a_matcher_must_match_one_to_one(num_points: int) -> None:
    class Twice(nn.Module):
        def forward(self, outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
            return [(torch.tensor([0, 2]), torch.tensor([1, 1]))] * len(targets)

    criterion = maskformer(Twice(), num_points=num_points)
    with pytest.raises(ValueError, match=r"one-to-one; .* segment more than once: \[1, 1\]"):
        criterion(golden.official_outputs(), golden.targets())


def test_a_matcher_may_leave_segments_out() -> None:
    class Some(nn.Module):
        def forward(self, outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
            return [(torch.tensor([2]), torch.tensor([0]))] * len(targets)

    outputs, targets = golden.official_outputs(aux=False), golden.targets()
    for num_points in (0, 20):
        losses = maskformer(Some(), num_points=num_points)(outputs, targets)
        assert all(bool(loss.isfinite()) for loss in losses.values())


def test_some_losses_only() -> None:
    outputs, targets = golden.official_outputs(), golden.targets()
    assert list(maskformer(losses=["labels"])(outputs, targets)) == ["loss_ce", "loss_ce_0"]
    masks = maskformer(losses=["masks"])(outputs, targets)
    assert list(masks) == ["loss_mask", "loss_dice", "loss_mask_0", "loss_dice_0"]
    with pytest.raises(ValueError, match=r"losses may hold 'labels' and 'masks', got \['boxes'\]"):
        maskformer(losses=["boxes"])


def test_at_points_as_mask2former() -> None:
    """Transformers' port of Mask2Former is the oracle; it draws the same points."""
    pytest.importorskip("transformers")
    from transformers.models.mask2former import modeling_mask2former as port

    config = type("Config", (), {})()
    config.num_labels, config.no_object_weight, config.train_num_points = 3, 0.1, 40
    config.class_weight, config.mask_weight, config.dice_weight = 2.0, 5.0, 5.0
    config.oversample_ratio, config.importance_sample_ratio = 3.0, 0.75
    oracle = port.Mask2FormerLoss(config, {})
    ours = maskformer(HungarianMatcher(2, 5, 5, 40), num_points=40)

    outputs: dict[str, Any] = golden.official_outputs()
    targets = golden.targets()
    (aux,) = outputs["aux_outputs"]
    leaves = [x.requires_grad_() for x in (outputs["pred_masks"], outputs["pred_logits"])]
    torch.manual_seed(1)
    expected = oracle(
        *leaves,
        [target["masks"].float() for target in targets],
        [target["labels"] for target in targets],
        [{"masks_queries_logits": aux["pred_masks"], "class_queries_logits": aux["pred_logits"]}],
    )
    torch.manual_seed(1)
    losses = ours(outputs, targets)
    named = {name.replace("cross_entropy", "ce"): loss for name, loss in expected.items()}
    assert losses.keys() == named.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, named[name], rtol=2e-6, atol=1e-6)
    gradients = [torch.autograd.grad(sum(result.values()), leaves) for result in (losses, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("num_points", [0, 24])
class TestLabels:
    """Labels of K, "no object", and others that the official code takes or refuses."""

    def losses(self, num_points: int, label: Tensor, backend: str) -> dict[str, Tensor]:
        outputs, targets = golden.official_outputs(), golden.targets()
        targets[0]["labels"] = label
        criterion = maskformer(HungarianMatcher(1, 20, 1, num_points), num_points=num_points)
        torch.manual_seed(3)
        with use_backend(backend):
            return criterion(outputs, targets)

    def test_no_object_is_learnt(self, num_points: int, backend: str) -> None:
        label = torch.tensor([golden.NUM_CLASSES, 1])
        losses = self.losses(num_points, label, backend)
        assert all(bool(loss.isfinite()) for loss in losses.values())
        if num_points == 0:
            targets = golden.targets()
            targets[0]["labels"] = label
            expected = official(golden.official_outputs(), targets, golden.NUM_CLASSES)
            for name, loss in losses.items():
                torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("wrong", [-1, golden.NUM_CLASSES + 1, -100])
    def test_others_are_refused(self, num_points: int, backend: str, wrong: int) -> None:
        with pytest.raises(ValueError, match=rf"labels must be in 0\.\.2 .*no object.*{wrong}"):
            self.losses(num_points, torch.tensor([0, wrong]), backend)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
    def test_any_integer(self, num_points: int, backend: str, dtype: torch.dtype) -> None:
        label = golden.targets()[0]["labels"]
        expected = self.losses(num_points, label, backend)
        assert self.losses(num_points, label.to(dtype), backend) == expected
        with pytest.raises(TypeError, match="integer"):
            self.losses(num_points, label.float(), backend)

    def test_an_empty_list(self, num_points: int, backend: str) -> None:
        outputs, targets = golden.official_outputs(), golden.targets(empty=(0,))
        criterion = maskformer(HungarianMatcher(1, 20, 1, num_points), num_points=num_points)
        results = []
        for empty in (torch.zeros(0), torch.zeros(0, dtype=torch.int64)):
            targets[0]["labels"] = empty
            torch.manual_seed(3)
            with use_backend(backend):
                results.append(criterion(outputs, targets))
        assert results[0] == results[1]


@pytest.mark.parametrize("num_points", [0, 24])
@pytest.mark.parametrize("form", [np.int64, np.int32, np.asarray, torch.tensor, list])
def test_indices_of_any_form(num_points: int, form: Any) -> None:
    class Fixed(nn.Module):
        def forward(self, outputs: Any, targets: Any) -> list[Any]:
            return [(as_form([0, 2]), as_form([1, 0]))] * len(targets)

    def as_form(index: list[int]) -> Any:
        return np.array(index, form) if form in (np.int64, np.int32) else form(index)

    criterion = maskformer(Fixed(), num_points=num_points)
    torch.manual_seed(3)
    ours = criterion(golden.official_outputs(), golden.targets())
    form = torch.tensor
    torch.manual_seed(3)
    assert criterion(golden.official_outputs(), golden.targets()) == ours


@pytest.mark.parametrize(
    ("query", "segment", "error", "said"),
    [
        ([0.0, 1.0], [0, 1], TypeError, "indices of a matcher must be integers"),
        ([0, 99], [0, 1], ValueError, r"a query out of 0..\d+: \[0, 99\]"),
        ([0, 1], [0, -1], ValueError, r"a segment out of 0..1: \[0, -1\]"),
        ([0, 1], [0], ValueError, r"queries of shape \[2\] and segments of shape \[1\]"),
    ],
)
def test_wrong_indices_are_refused(
    query: list[float], segment: list[int], error: type[Exception], said: str
) -> None:
    class Fixed(nn.Module):
        def forward(self, outputs: Any, targets: Any) -> list[Any]:
            return [(torch.tensor(query), torch.tensor(segment))] * len(targets)

    with pytest.raises(error, match=said):
        maskformer(Fixed())(golden.official_outputs(), golden.targets())


@pytest.mark.parametrize("num_points", [0, 24])
def test_layers_with_other_numbers_of_queries(num_points: int) -> None:
    outputs = golden.official_outputs()
    (aux,) = outputs["aux_outputs"]
    outputs["aux_outputs"] = [{key: value[:, :3] for key, value in aux.items()}]
    criterion = maskformer(HungarianMatcher(1, 20, 1, num_points), num_points=num_points)
    torch.manual_seed(3)
    together = criterion(outputs, golden.targets())
    torch.manual_seed(3)
    alone = [
        criterion(layer, golden.targets()) for layer in (without_aux(outputs), aux_of(outputs))
    ]
    for name, loss in alone[0].items():
        torch.testing.assert_close(together[name], loss)
        torch.testing.assert_close(together[f"{name}_0"], alone[1][name])


def without_aux(outputs: Any) -> dict[str, Tensor]:
    return {key: value for key, value in outputs.items() if key != "aux_outputs"}


def aux_of(outputs: Any) -> dict[str, Tensor]:
    layer: dict[str, Tensor] = outputs["aux_outputs"][0]
    return layer


@pytest.mark.parametrize("classes", [golden.NUM_CLASSES - 1, golden.NUM_CLASSES + 1])
@pytest.mark.parametrize("num_points", [0, 24])
def test_another_number_of_classes(classes: int, num_points: int) -> None:
    criterion = SetCriterion(
        classes, HungarianMatcher(1, 20, 1, num_points), {}, 0.1, ["labels", "masks"], num_points
    )
    with pytest.raises(ValueError, match=rf"must be \[B, Q, {classes + 1}\].*got \[2, 5, 4\]"):
        criterion(golden.official_outputs(), golden.targets())


@pytest.mark.parametrize("num_points", [0, 24])
def test_another_number_of_classes_for_masks_alone(num_points: int) -> None:
    """Their matching takes probabilities of them; a class loss of a subclass may be of sigmoids."""

    class Sigmoids(SetCriterion):
        def loss_labels(self, *arguments: Any) -> dict[str, Tensor]:
            return {"loss_ce": torch.zeros(())}

    outputs, matcher = golden.official_outputs(), HungarianMatcher(1, 20, 1, num_points)
    classes = golden.NUM_CLASSES + 1
    with pytest.raises(ValueError, match=rf"must be \[B, Q, {classes + 1}\].*got \[2, 5, 4\]"):
        SetCriterion(classes, matcher, {}, 0.1, ["masks"], num_points)(outputs, golden.targets())
    theirs = Sigmoids(classes, matcher, {}, 0.1, ["labels", "masks"], num_points)
    assert theirs(outputs, golden.targets())["loss_ce"] == 0


@pytest.mark.parametrize("num_points", [0, 24])
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda outputs, targets: targets.pop(), ValueError, "1 images|images .* of 1"),
        (lambda outputs, targets: targets[1].pop("masks"), ValueError, r"targets\[1\].*'masks'"),
        (
            lambda outputs, targets: targets[1].update(labels=np.zeros(3, int)),
            TypeError,
            r"targets\[1\]\['labels'\] must be a torch.Tensor, got ndarray",
        ),
        (lambda outputs, targets: outputs.pop("pred_logits"), ValueError, "'pred_logits'"),
        (lambda outputs, targets: outputs.pop("pred_masks"), ValueError, "'pred_masks'"),
        (
            lambda outputs, targets: outputs.update(pred_masks=outputs["pred_masks"][:, :1]),
            ValueError,
            "logits must be",
        ),
    ],
)
def test_errors(num_points: int, change: Any, error: type[Exception], said: str) -> None:
    outputs, targets = golden.official_outputs(aux=False), golden.targets()
    change(outputs, targets)
    criterion = maskformer(HungarianMatcher(1, 20, 1, num_points), num_points=num_points)
    for call in (criterion, criterion.matcher):
        with pytest.raises(error, match=said):
            call(outputs, targets)


@pytest.mark.parametrize("num_points", [0, 24])
def test_default_device_changes_nothing(num_points: int) -> None:
    criterion = maskformer(HungarianMatcher(1, 20, 1, num_points), num_points=num_points)
    outputs, targets, results = golden.official_outputs(), golden.targets(), []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        with torch.device(device):
            results.append(criterion(outputs, targets))
    assert results[0] == results[1]


def test_logits_of_a_video() -> None:
    outputs = golden.official_outputs(aux=False)
    outputs["pred_masks"] = outputs["pred_masks"][:, :, None].expand(-1, -1, 3, -1, -1)
    for num_points in (0, 24):
        criterion = maskformer(HungarianMatcher(1, 20, 1, num_points), num_points=num_points)
        with pytest.raises(ValueError, match=r"must be \[B, Q, h, w\], got \[2, 5, 3, .*video"):
            criterion(outputs, golden.targets())


@pytest.mark.parametrize("num_points", [0, 24])
class TestOfficialMethods:
    """What derived repositories override or call."""

    def test_each_loss_of_given_pairs(self, num_points: int) -> None:
        outputs, targets = golden.official_outputs(aux=False), golden.targets()
        criterion = maskformer(HungarianMatcher(1, 20, 1, num_points), num_points=num_points)
        torch.manual_seed(3)
        expected = criterion(outputs, targets)
        torch.manual_seed(3)
        indices = criterion.matcher.memory_efficient_forward(outputs, targets)
        arguments = (outputs, targets, indices, 5)
        losses = criterion.loss_labels(*arguments) | criterion.loss_masks(*arguments)
        torch.testing.assert_close(losses, dict(expected), rtol=1e-6, atol=1e-6)
        torch.manual_seed(3)
        criterion.matcher(outputs, targets)
        for name in ("labels", "masks"):
            found = criterion.get_loss(name, *arguments)
            for key, loss in found.items():
                torch.testing.assert_close(loss, expected[key], rtol=1e-6, atol=1e-6)

    def test_a_segment_may_have_several_queries(self, num_points: int) -> None:
        """As in the denoising parts of derived criteria."""
        outputs, targets = golden.official_outputs(aux=False), golden.targets()
        twice = [(torch.tensor([0, 1]), torch.tensor([0, 0]))] * 2
        once = [[(torch.tensor([query]), torch.tensor([0]))] * 2 for query in (0, 1)]
        criterion = maskformer(num_points=num_points)
        both = criterion.loss_masks(outputs, targets, twice, 1.0)
        alone = [criterion.loss_masks(outputs, targets, indices, 1.0) for indices in once]
        for name, loss in both.items():
            # Points are drawn anew for each.
            tolerance = {"rtol": 0.2, "atol": 0.2} if num_points else {}
            torch.testing.assert_close(loss, alone[0][name] + alone[1][name], **tolerance)
        classes = torch.full((2, 5), golden.NUM_CLASSES)
        for image in range(2):
            classes[image, :2] = targets[image]["labels"][0]
        expected = F.cross_entropy(
            outputs["pred_logits"].transpose(1, 2), classes, criterion.empty_weight
        )
        found = criterion.loss_labels(outputs, targets, twice, 1.0)["loss_ce"]
        torch.testing.assert_close(found, expected)

    def test_permutations(self, num_points: int) -> None:
        indices = [(np.array([3, 4]), np.array([1, 0])), (torch.tensor([2]), torch.tensor([0]))]
        criterion = maskformer(num_points=num_points)
        image, query = criterion._get_src_permutation_idx(indices)
        assert (image.tolist(), query.tolist()) == ([0, 0, 1], [3, 4, 2])
        image, segment = criterion._get_tgt_permutation_idx(indices)
        assert (image.tolist(), segment.tolist()) == ([0, 0, 1], [1, 0, 0])

    def test_losses_of_a_subclass(self, num_points: int) -> None:
        class Contrastive(SetCriterion):
            def get_loss(self, loss: str, *arguments: Any) -> dict[str, Tensor]:
                if loss == "contrastive":
                    return self.loss_contrastive(*arguments)
                return super().get_loss(loss, *arguments)

            def loss_contrastive(
                self, outputs: Any, targets: Any, indices: Any, num_masks: Any
            ) -> dict[str, Tensor]:
                source = self._get_src_permutation_idx(indices)
                return {"loss_contrastive": outputs["pred_logits"][source].sum() / num_masks}

            def loss_labels(self, *arguments: Any) -> dict[str, Tensor]:
                return {"loss_ce": 2 * super().loss_labels(*arguments)["loss_ce"]}

        matcher = HungarianMatcher(1, 20, 1, num_points)
        outputs = golden.official_outputs()
        results = []
        for kind, names in (
            (SetCriterion, ["labels", "masks"]),
            (Contrastive, ["labels", "masks", "contrastive"]),
        ):
            torch.manual_seed(3)
            criterion = kind(golden.NUM_CLASSES, matcher, WEIGHTS, 0.1, names, num_points)
            results.append(criterion(outputs, golden.targets()))
        plain, theirs = results
        assert theirs.keys() - plain.keys() == {"loss_contrastive", "loss_contrastive_0"}
        for name, loss in plain.items():
            factor = 2 if name.startswith("loss_ce") else 1
            torch.testing.assert_close(theirs[name], factor * loss)

    def test_a_matcher_of_a_subclass_is_called(self, num_points: int) -> None:
        calls = []

        class Mine(HungarianMatcher):
            def memory_efficient_forward(self, outputs: Any, targets: Any) -> Any:
                calls.append(sorted(outputs))
                return super().memory_efficient_forward(outputs, targets)

        maskformer(Mine(1, 20, 1, num_points), num_points=num_points)(
            golden.official_outputs(), golden.targets()
        )
        assert calls == [["pred_logits", "pred_masks"]] * 2


def test_the_number_of_masks_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(number: Tensor) -> None:
        number += 15  # what three other processes have

    for name, value in {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 4,
        "all_reduce": all_reduce,
    }.items():
        monkeypatch.setattr(torch.distributed, name, value)
    losses = maskformer()(golden.official_outputs(), golden.targets())
    # 5 here, 20 in all: 5 per process, as alone.
    assert float(losses["loss_mask"]) == pytest.approx(golden.LOSSES["loss_mask"], abs=2e-6)
    empty = maskformer()(golden.official_outputs(), golden.targets(empty=(1,)))
    whole = golden.LOSSES_WITHOUT_IMAGE_1["loss_mask"] * 2 / (17 / 4)
    assert float(empty["loss_mask"]) == pytest.approx(whole, abs=2e-6)


def test_numbers() -> None:
    with pytest.raises(TypeError, match="num_classes must be an integer, got '3'"):
        SetCriterion("3", HungarianMatcher(), {}, 0.1, ["labels"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="eos_coef must be a number, got None"):
        SetCriterion(3, HungarianMatcher(), {}, None, ["labels"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cost_mask must be a number, got '20'"):
        HungarianMatcher(1, "20", 1)  # type: ignore[arg-type]
    criterion = SetCriterion(
        np.int64(golden.NUM_CLASSES),  # type: ignore[arg-type]
        HungarianMatcher(*np.array([1, 20, 1])),
        {},
        np.float32(0.1),  # type: ignore[arg-type]
        ["labels", "masks"],
    )
    losses = criterion(golden.official_outputs(), golden.targets())
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(golden.LOSSES[name], abs=2e-6), name


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("oversample_ratio", x) for x in (0.5, 0, math.nan, None, "3")),
        *(("importance_sample_ratio", x) for x in (-0.1, 2.0, math.nan, "1")),
        *(("num_points", x) for x in (16.5, -3, math.nan, "9")),
    ],
)
def test_samplings_are_checked(name: str, wrong: Any) -> None:
    options = {"num_points": 16, name: wrong}
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, ["masks"], **options)


@pytest.mark.parametrize(
    "changed",
    [lambda x: x[::-1], lambda x: x.astype(">i8"), lambda x: np.repeat(x, 2).astype("i4")[::2]],
)
def test_numpy_indices_of_any_layout(changed: Any) -> None:
    class Given(nn.Module):
        def __init__(self, form: Any) -> None:
            super().__init__()
            self.form = form

        def forward(self, outputs: Any, targets: Any) -> Any:
            numbers = [self.form(np.arange(len(target["labels"]))) for target in targets]
            return list(zip(numbers, numbers, strict=True))

    outputs, targets = golden.official_outputs(), golden.targets()
    losses = []
    for form in (np.asarray, changed):
        criterion = SetCriterion(golden.NUM_CLASSES, Given(form), {}, 0.1, ["labels", "masks"])
        losses.append(criterion(outputs, targets))
    torch.testing.assert_close(*losses)


def test_no_queries_and_no_mappings() -> None:
    criterion = SetCriterion(3, HungarianMatcher(num_points=8), {}, 0.1, ["masks"], 8)
    target = {"labels": torch.tensor([0, 1]), "masks": torch.rand(2, 16, 16) > 0.5}
    outputs = {"pred_logits": torch.randn(1, 0, 4), "pred_masks": torch.randn(1, 0, 4, 4)}
    assert criterion(outputs, [target]) == {"loss_mask": 0, "loss_dice": 0}
    whole = {"pred_logits": torch.zeros(1, 5, 4), "pred_masks": torch.zeros(1, 5, 4, 4).long()}
    with pytest.raises(TypeError, match="mask logits must have a floating-point dtype"):
        criterion(whole, [target])
    for given, said in ((None, "outputs"), ({}, r"targets\[0\]")):
        with pytest.raises(TypeError, match=f"{said} must be a mapping"):
            criterion(whole if given == {} else given, [None])


def test_constructors_and_checkpoints() -> None:
    with pytest.raises(ValueError, match="all 0"):
        HungarianMatcher(0, 0, 0)
    assert "num_points=7" in repr(HungarianMatcher(1, 2, 3, 7))
    criterion = maskformer()
    assert criterion.weight_dict is WEIGHTS
    torch.testing.assert_close(
        criterion.state_dict(), {"empty_weight": torch.tensor([1.0, 1.0, 1.0, 0.1])}
    )


def test_imports_without_detectron2_and_transformers() -> None:
    code = (
        "import sys; sys.modules.update(detectron2=None, transformers=None); "
        "import mfkernels.integrations.detectron2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("weights", [[1.0, 5.0, 0.2, 0.1], [1.0, 1.0, 1.0, 0.4]])
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_weights_of_classes_are_those_of_the_buffer(
    weights: list[float], loaded: bool, compiled: bool
) -> None:
    """As official code gives classes their weights: by writing to it."""
    criterion, outputs = maskformer(), golden.official_outputs(aux=False)
    given = torch.tensor(weights)
    criterion(outputs, golden.targets())
    if loaded:
        criterion.load_state_dict({"empty_weight": given})
    else:
        criterion.empty_weight.copy_(given)
    indices = criterion.matcher(outputs, golden.targets())
    logits = outputs["pred_logits"]
    classes = torch.full(logits.shape[:2], golden.NUM_CLASSES)
    for image, ((queries, segments), target) in enumerate(
        zip(indices, golden.targets(), strict=True)
    ):
        classes[image, queries] = target["labels"][segments]
    expected = F.cross_entropy(logits.transpose(1, 2), classes, given)
    call = torch.compile(criterion, backend="eager") if compiled else criterion
    torch.testing.assert_close(call(outputs, golden.targets())["loss_ce"], expected)


def test_weights_of_classes_in_inference_mode() -> None:
    with torch.inference_mode():
        criterion, outputs = maskformer(), golden.official_outputs(aux=False)
        before = criterion(outputs, golden.targets())["loss_ce"]
        criterion.empty_weight[0] = 7.0
        assert not torch.equal(criterion(outputs, golden.targets())["loss_ce"], before)
