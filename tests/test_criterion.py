"""The criterion: golden numbers, the official computation, Hugging Face, failures, no waiting."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import golden
from helpers.gpu.stay_on_device import StayOnDevice
from helpers.official.criterion import criterion as official
from helpers.process_groups import run_two
from helpers.strategies import Case, cases, official_outputs
from hypothesis import assume, given, settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from mfkernels import MaskFormerCriterion, SegmentTargets, mask_logits, mask_loss, use_backend
from mfkernels.ops.matching_cost.reference import nearest_masks


def factored(case: Case, dtype: torch.dtype = torch.float32, *, grad: bool = False) -> Any:
    names = ("class_logits", "mask_embed", "pixel_features")
    return dict(zip(names, case.predictions(dtype, grad=grad), strict=True))


def dense(outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    masks = mask_logits(outputs["mask_embed"], outputs["pixel_features"])
    return official_outputs(outputs["class_logits"], masks)


def values(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


class TestGoldenNumbers:
    """Numbers of the official code, to the last printed digit."""

    criterion = MaskFormerCriterion(golden.NUM_CLASSES)

    def test_losses(self) -> None:
        official_form = golden.targets()
        ours = SegmentTargets.from_masks(
            [target["masks"] for target in official_form],
            [target["labels"] for target in official_form],
        )
        for targets in (official_form, ours):
            losses = values(self.criterion(golden.official_outputs(), targets))
            assert losses == pytest.approx(golden.LOSSES, abs=1e-6)
            assert list(losses) == list(golden.LOSSES)

    def test_assignment(self) -> None:
        assignment = self.criterion.match(golden.official_outputs(), golden.targets())
        assert assignment.tolist() == [
            [list(row) for row in golden.AUX_ASSIGNMENT],
            [list(row) for row in golden.FINAL_ASSIGNMENT],
        ]

    def test_one_image_emptied(self) -> None:
        losses = self.criterion(golden.official_outputs(aux=False), golden.targets(empty=(1,)))
        assert values(losses) == pytest.approx(golden.LOSSES_WITHOUT_IMAGE_1, abs=1e-6)

    def test_both_images_emptied(self) -> None:
        losses = self.criterion(golden.official_outputs(aux=False), golden.targets(empty=(0, 1)))
        assert values(losses) == pytest.approx(golden.LOSSES_WITHOUT_SEGMENTS, abs=1e-6)

    def test_restatement(self) -> None:
        losses = official(golden.official_outputs(), golden.targets(), golden.NUM_CLASSES)
        assert values(losses) == pytest.approx(golden.LOSSES, abs=1e-6)

    @pytest.mark.parametrize("backend", ["reference", "native"])
    def test_class_weights_weigh_the_class_loss_alone(self, backend: str) -> None:
        weights = torch.linspace(0, 3, golden.NUM_CLASSES)
        outputs = golden.official_outputs()
        logits = outputs["pred_logits"].requires_grad_()
        weighted = official(outputs, golden.targets(), golden.NUM_CLASSES, class_weights=weights)
        [expected] = torch.autograd.grad(weighted["loss_ce"], logits)
        criterion = MaskFormerCriterion(golden.NUM_CLASSES, class_weights=weights.tolist())
        with use_backend(backend):
            losses = criterion(outputs, golden.targets())
            assert values(losses) == pytest.approx(values(weighted), abs=1e-6)
            assert losses["loss_ce"].item() != pytest.approx(golden.LOSSES["loss_ce"], abs=1e-3)
            torch.testing.assert_close(torch.autograd.grad(losses["loss_ce"], logits)[0], expected)
            plain = self.criterion.match(outputs, golden.targets())
            assert criterion.match(outputs, golden.targets()).equal(plain)
        assert not criterion.state_dict()

    def test_class_weights_of_one_change_nothing(self) -> None:
        criterion = MaskFormerCriterion(
            golden.NUM_CLASSES, class_weights=torch.ones(golden.NUM_CLASSES)
        )
        losses = criterion(golden.official_outputs(), golden.targets())
        assert values(losses) == values(self.criterion(golden.official_outputs(), golden.targets()))

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1.0, 2.0], rf"must be \[{golden.NUM_CLASSES}\], one per class, got \[2\]"),
            ([-1.0] * golden.NUM_CLASSES, "must be finite and not negative"),
            ([float("nan")] * golden.NUM_CLASSES, "must be finite and not negative"),
        ],
    )
    def test_class_weights_that_do_not_fit(self, weights: list[float], message: str) -> None:
        with pytest.raises(ValueError, match=f"class_weights {message}"):
            MaskFormerCriterion(golden.NUM_CLASSES, class_weights=weights)

    def test_total(self) -> None:
        losses = self.criterion(golden.official_outputs(), golden.targets())
        expected = sum(
            value * {"ce": 1, "mask": 20, "dice": 1}[name.split("_")[1]]
            for name, value in golden.LOSSES.items()
        )
        assert self.criterion.total(losses).item() == pytest.approx(expected, abs=5e-5)
        with pytest.raises(ValueError, match="names that the criterion gives, got 'loss_box'"):
            self.criterion.total({"loss_box": torch.ones(())})


def all_costs_differ(case: Case) -> bool:
    """Whether no two segments of an image look the same to the matcher (either may be taken)."""
    targets = case.targets()
    for image, labels in enumerate(case.labels()):
        masks = nearest_masks(targets, image, case.low).flatten(1)
        if len(torch.cat([masks, labels[:, None]], 1).unique(dim=0)) < len(labels):
            return False
    return True


@given(cases)
@settings(max_examples=60, deadline=None)
def test_equals_the_official_computation(case: Case) -> None:
    """Every loss and gradient, factored and dense, in float64."""
    assume(all_costs_differ(case))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # T > Q is drawn on purpose
        criterion = MaskFormerCriterion(case.classes)
        results: list[tuple[dict[str, Tensor], list[Tensor | None]]] = []
        for kind in ("factored", "dense", "official"):
            outputs = factored(case, torch.float64, grad=True)
            if kind == "factored":
                losses = criterion(outputs, case.targets())
            elif kind == "dense":
                losses = criterion(dense(outputs), case.official_targets())
            else:
                losses = official(dense(outputs), case.official_targets(), case.classes)
            criterion.total(losses).backward()
            results.append((dict(sorted(losses.items())), [x.grad for x in outputs.values()]))
    for ours in results[:2]:
        torch.testing.assert_close(ours, results[2], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_structured_predictions_as_float64_does(dtype: torch.dtype) -> None:
    """Several queries want each segment, some of them almost equally well."""
    generator = torch.Generator().manual_seed(0)
    layers, images, queries, segments, channels, classes = 6, 3, 100, 12, 64, 20
    height, width = 48, 64
    grid = torch.stack(
        torch.meshgrid(torch.arange(4 * height), torch.arange(4 * width), indexing="ij"), -1
    )
    maps, labels = [], []
    for _ in range(images):
        centers = torch.rand(segments, 2, generator=generator) * torch.tensor([192.0, 256.0])
        maps.append(torch.cdist(grid.flatten(0, 1).float(), centers).argmin(1).view(192, 256))
        labels.append(torch.randint(classes, (segments,), generator=generator))
    targets = SegmentTargets.from_label_maps(torch.stack(maps), labels)
    wanted = torch.randint(segments, (layers, images, queries), generator=generator)
    strength = 1 + 3 * torch.rand(layers, images, queries, 1, generator=generator)
    inside = torch.nn.functional.one_hot(torch.stack(maps)[:, ::4, ::4], channels)
    features = 2.0 * inside.movedim(-1, 1) - 0.5
    features += 0.3 * torch.randn(features.shape, generator=generator)
    embed = strength * torch.nn.functional.one_hot(wanted, channels)
    embed += 0.1 * torch.randn(embed.shape, generator=generator)
    likely = torch.stack(labels).expand(layers, -1, -1).gather(-1, wanted)
    class_logits = 4.0 * torch.nn.functional.one_hot(likely, classes + 1)
    class_logits += torch.randn(class_logits.shape, generator=generator)
    outputs = {
        "class_logits": class_logits.to(dtype),
        "mask_embed": embed.to(dtype),
        "pixel_features": features.to(dtype),
    }
    criterion = MaskFormerCriterion(classes)
    with use_backend("reference"):
        exact = criterion.match({name: x.double() for name, x in outputs.items()}, targets)
    assert (exact >= 0).all()
    assert torch.equal(criterion.match(outputs, targets), exact)


def test_weights_reach_matching_and_total() -> None:
    case = Case(counts=(4, 3))
    weights = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 3.0}
    options = {**weights, "no_object_weight": 0.4, "alpha": 0.6, "gamma": 1.0}
    criterion = MaskFormerCriterion(case.classes, **options)
    outputs = factored(case)
    losses = criterion(outputs, case.targets())
    expected = official(dense(outputs), case.official_targets(), case.classes, **options)
    assert values(losses) == pytest.approx(values(expected), rel=1e-5)
    total = sum(
        {"ce": 2.0, "mask": 5.0, "dice": 3.0}[name.split("_")[1]] * loss
        for name, loss in values(losses).items()
    )
    assert criterion.total(losses).item() == pytest.approx(total, rel=1e-6)
    assert criterion.weights == {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 3.0}
    assert "loss_mask" in repr(criterion)
    assert not criterion.state_dict()


@pytest.mark.parametrize("dense_form", [False, True])
def test_losses_may_be_weighted_in_place(dense_form: bool) -> None:
    """As the official training step does."""
    case = Case(layers=3, counts=(2, 1))
    outputs = factored(case, grad=True)
    criterion = MaskFormerCriterion(case.classes)
    gradients = []
    for in_place in (False, True):
        losses = criterion(dense(outputs) if dense_form else outputs, case.targets())
        if in_place:
            for name in losses:
                losses[name] *= criterion.weights[name.rstrip("_0123456789")]
            total = torch.stack(list(losses.values())).sum()
        else:
            total = criterion.total(losses)
        gradients.append((total, *torch.autograd.grad(total, list(outputs.values()))))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_names_of_many_layers() -> None:
    case = Case(layers=12)
    losses = MaskFormerCriterion(case.classes)(factored(case), case.targets())
    assert list(losses)[:3] == ["loss_ce", "loss_mask", "loss_dice"]
    assert list(losses)[3:] == [
        f"loss_{kind}_{layer}" for layer in range(11) for kind in ("ce", "mask", "dice")
    ]
    single = {name: tensor[-1:] for name, tensor in factored(case).items()}
    single["pixel_features"] = factored(case)["pixel_features"]
    final = MaskFormerCriterion(case.classes)(single, case.targets())
    assert values(final) == pytest.approx({name: losses[name].item() for name in final}, rel=1e-5)


def test_one_layer_without_an_axis_of_layers() -> None:
    """As the parts take it, `[B, Q, K+1]` and `[B, Q, C]`."""
    case = Case(layers=2)
    outputs = factored(case)
    bare = {
        "class_logits": outputs["class_logits"][-1],
        "mask_embed": outputs["mask_embed"][-1],
        "pixel_features": outputs["pixel_features"],
    }
    single = {**bare, "class_logits": bare["class_logits"][None]}
    single["mask_embed"] = bare["mask_embed"][None]
    criterion = MaskFormerCriterion(case.classes)
    losses = criterion(bare, case.targets())
    assert list(losses) == ["loss_ce", "loss_mask", "loss_dice"]
    assert values(losses) == values(criterion(single, case.targets()))
    assert torch.equal(
        criterion.match(bare, case.targets()), criterion.match(outputs, case.targets())[-1:]
    )
    with pytest.raises(ValueError, match=r"class logits must be .* got"):
        criterion({**bare, "class_logits": outputs["class_logits"]}, case.targets())
    with pytest.raises(ValueError, match=r"class logits must be .* got"):
        criterion({**single, "class_logits": bare["class_logits"]}, case.targets())


def test_hugging_face() -> None:
    """Its matcher and losses, on the same dense logits."""
    modeling = pytest.importorskip("transformers.models.maskformer.modeling_maskformer")
    case = Case(layers=1, counts=(3, 5), queries=9, low=(8, 8), size=(32, 32))
    weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    matcher = modeling.MaskFormerHungarianMatcher(cost_class=1.0, cost_dice=1.0, cost_mask=20.0)
    theirs = modeling.MaskFormerLoss(
        num_labels=case.classes, matcher=matcher, weight_dict=weights, eos_coef=0.1
    )
    outputs = dense(factored(case))
    expected = theirs(
        outputs["pred_masks"],
        outputs["pred_logits"],
        [masks.float() for masks in case.masks()],
        case.labels(),
    )
    losses = MaskFormerCriterion(case.classes)(outputs, case.targets())
    assert losses["loss_ce"].item() == pytest.approx(expected["loss_cross_entropy"].item(), 1e-5)
    assert losses["loss_mask"].item() == pytest.approx(expected["loss_mask"].item(), rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(expected["loss_dice"].item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    case = Case()
    outputs = {name: tensor.to(dtype) for name, tensor in factored(case).items()}
    wide = {name: tensor.float() for name, tensor in outputs.items()}
    criterion = MaskFormerCriterion(case.classes)
    expected = criterion(wide, case.targets())
    losses = criterion(outputs, case.targets())
    assert values(losses) == values(expected)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    with torch.autocast("cpu", dtype):
        assert values(criterion(wide, case.targets())) == values(expected)


def test_official_targets_of_different_sizes_are_padded() -> None:
    case = Case(counts=(2, 2))
    official_targets = case.official_targets()
    cropped = [dict(target) for target in official_targets]
    cropped[0]["masks"] = cropped[0]["masks"][:, :11, :13]
    padded = torch.zeros_like(official_targets[0]["masks"])
    padded[:, :11, :13] = cropped[0]["masks"]
    official_targets[0]["masks"] = padded
    criterion = MaskFormerCriterion(case.classes)
    outputs = factored(case)
    assert values(criterion(outputs, cropped)) == values(criterion(outputs, official_targets))


class TestFailures:
    @pytest.mark.parametrize("empty", [(0, 0), (0, 3)])
    def test_images_without_segments(self, empty: tuple[int, int]) -> None:
        case = Case(counts=empty)
        outputs = factored(case, grad=True)
        criterion = MaskFormerCriterion(case.classes)
        losses = criterion(outputs, case.targets())
        criterion.total(losses).backward()
        for tensor in outputs.values():
            assert tensor.grad is not None
            assert torch.isfinite(tensor.grad).all()
        if not any(empty):
            assert losses["loss_mask"].item() == losses["loss_dice_0"].item() == 0
            assert not outputs["mask_embed"].grad.any()

    @pytest.mark.parametrize("backend", ["reference", "auto"])
    def test_no_weight_at_all(self, backend: str) -> None:
        """The class loss is 0 / 0, as in PyTorch."""
        case = Case(counts=(0, 0))
        outputs = factored(case, grad=True)
        logits = outputs["class_logits"][-1].detach().requires_grad_()
        weight = torch.tensor([*[1.0] * case.classes, 0.0])
        theirs = cross_entropy(logits.mT, torch.full((2, case.queries), case.classes), weight)
        [expected] = torch.autograd.grad(theirs, logits)
        criterion = MaskFormerCriterion(case.classes, no_object_weight=0)
        with use_backend(backend):
            losses = criterion(outputs, case.targets())
            losses["loss_ce"].backward()
        assert theirs.isnan()
        assert losses["loss_ce"].isnan()
        assert losses["loss_mask"] == losses["loss_dice"] == 0
        assert outputs["class_logits"].grad is not None
        gradient = outputs["class_logits"].grad[-1]
        torch.testing.assert_close(gradient, expected, equal_nan=True)

    @pytest.mark.parametrize("what", ["void", "one pixel", "everything", "one-pixel images"])
    def test_extreme_segments(self, what: str) -> None:
        case = Case(counts=(2, 1), size=(1, 1) if what == "one-pixel images" else (24, 20))
        label_maps = torch.full((2, *case.size), 0 if what == "everything" else -1)
        if what == "one pixel":
            label_maps[:, 3, 7] = 0
        labels = [torch.tensor([1, 2]), torch.tensor([0])]
        targets = SegmentTargets.from_label_maps(label_maps, labels)
        official_targets = [
            {"labels": of_image, "masks": targets.dense_masks(image)}
            for image, of_image in enumerate(labels)
        ]
        outputs = factored(case, torch.float64, grad=True)
        outputs["pixel_features"] = outputs["pixel_features"].to(memory_format=torch.channels_last)
        criterion = MaskFormerCriterion(case.classes)
        inputs = list(outputs.values())
        results = []
        for losses in (
            criterion(outputs, targets),
            official(dense(outputs), official_targets, case.classes),
        ):
            total = criterion.total(losses)
            results.append((total, torch.autograd.grad(total, inputs, retain_graph=True)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)

    def test_more_segments_than_queries(self) -> None:
        case = Case(counts=(5, 2), queries=3)
        criterion = MaskFormerCriterion(case.classes)
        with pytest.warns(UserWarning, match="5 segments, more than the 3 queries"):
            assignment = criterion.match(factored(case), case.targets())
        assert (assignment >= 0).sum(-1).tolist() == [[3, 2], [3, 2]]
        assert all(sorted(row)[-3:] == [0, 1, 2] for row in assignment[:, 0].tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            losses = criterion(factored(case), case.targets())
        expected = official(dense(factored(case)), case.official_targets(), case.classes)
        assert values(losses) == pytest.approx(values(expected), rel=1e-5)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("name", ["class_logits", "mask_embed"])
    def test_bad_logits(self, bad: float, name: str) -> None:
        case = Case(counts=(3, 2))
        outputs = factored(case)
        outputs[name][0, 1, 2] = bad
        criterion = MaskFormerCriterion(case.classes)
        assignment = criterion.match(outputs, case.targets())
        assert criterion.bad_costs.item() == 1
        # A valid matching all the same, and the bad query is left out: there are enough others.
        for row, count in zip(assignment.flatten(0, 1), (3, 2) * 2, strict=True):
            assert row[:count].unique().numel() == count
            assert (row[:count] >= 0).all()
        assert not (assignment[0, 1] == 2).any()
        losses = criterion(outputs, case.targets())
        assert criterion.bad_costs.item() == 2
        assert torch.isfinite(torch.stack([losses["loss_ce"], losses["loss_mask"]])).all()

    def test_everything_bad(self) -> None:
        case = Case(counts=(3, 2))
        outputs = {name: tensor * torch.nan for name, tensor in factored(case).items()}
        criterion = MaskFormerCriterion(case.classes)
        assignment = criterion.match(outputs, case.targets())
        assert (assignment >= 0).sum(-1).tolist() == [[3, 2], [3, 2]]
        assert criterion.bad_costs.item() == 4
        assert criterion(outputs, case.targets()).keys() == {
            f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0")
        }

    def test_label_out_of_range(self) -> None:
        case = Case()
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.0 for 1 classes"):
            MaskFormerCriterion(1)(
                {**factored(case), "class_logits": torch.zeros(2, 2, 7, 2)}, case.targets()
            )
        # On a GPU nobody can look in time; the class loss says it, and nothing else suffers.
        targets = case.targets()
        targets.labels[1] = 255
        object.__setattr__(targets, "_label_limits", None)
        outputs = factored(case, grad=True)
        criterion = MaskFormerCriterion(case.classes)
        losses = criterion(outputs, targets)
        assert losses["loss_ce"].isnan()
        assert losses["loss_ce_0"].isnan()
        assert torch.isfinite(losses["loss_mask"])
        assert criterion.bad_costs.item() == 2
        criterion.total(losses).backward()
        assert torch.isfinite(outputs["class_logits"].grad).all()

    @pytest.mark.parametrize(
        ("error", "match", "outputs", "targets"),
        [
            (ValueError, "class_logits is missing from", {"class_logits": None}, {}),
            (ValueError, "pixel_features is missing from", {"pixel_features": None}, {}),
            (TypeError, "must be a tensor, got float", {"class_logits": 1.0}, {}),
            (
                ValueError,
                r"class logits must be \[2, 2, 7, 5\] .* got \[2, 2, 7, 4\]",
                {"class_logits": torch.zeros(2, 2, 7, 4)},
                {},
            ),
            (
                TypeError,
                "must have a floating",
                {"class_logits": torch.zeros(2, 2, 7, 5).int()},
                {},
            ),
            (
                ValueError,
                "class_logits must be on cpu",
                {"class_logits": torch.zeros(2, 2, 7, 5, device="meta")},
                {},
            ),
            (ValueError, "agree in B and C", {"pixel_features": torch.zeros(2, 6, 6, 5)}, {}),
            (ValueError, r"image 0 is \['boxes'\]", {}, [{"boxes": torch.zeros(1)}]),
            (ValueError, "image 0 is str", {}, ["labels"]),
            (
                ValueError,
                "targets hold 1 images, but the predictions 2",
                {},
                Case().official_targets()[:1],
            ),
            (ValueError, "targets must be on cpu like", {}, Case().targets().to("meta")),
        ],
    )
    def test_errors(
        self, error: type[Exception], match: str, outputs: dict[str, Any], targets: Any
    ) -> None:
        merged = {**factored(Case()), **outputs}
        merged = {name: value for name, value in merged.items() if value is not None}
        with pytest.raises(error, match=match):
            MaskFormerCriterion(4)(merged, targets or Case().targets())

    def test_missing_keys_of_the_official_form(self) -> None:
        with pytest.raises(ValueError, match=r"pred_masks is missing from \['pred_logits'\]"):
            MaskFormerCriterion(4)({"pred_logits": torch.zeros(2, 7, 5)}, Case().targets())

    @pytest.mark.parametrize(
        ("match", "arguments"),
        [
            ("num_classes must be at least 1, got 0", {"num_classes": 0}),
            ("dice_weight must not be negative", {"num_classes": 3, "dice_weight": -1.0}),
            ("gamma must be at least 0", {"num_classes": 3, "gamma": -1.0}),
        ],
    )
    def test_settings(self, match: str, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=match):
            MaskFormerCriterion(**arguments)


def test_compiles_into_one_graph_with_its_backward_pass() -> None:
    case = Case(counts=(3, 2))
    results: list[list[Tensor]] = []
    for compiled in (False, True):
        criterion = MaskFormerCriterion(case.classes)

        def total(outputs: Any, targets: SegmentTargets, criterion: Any = criterion) -> Tensor:
            return criterion.total(criterion(outputs, targets))

        outputs = factored(case, grad=True)
        # No generated code: inductor would spend its time on the small operations around.
        call = torch.compile(total, fullgraph=True, backend="aot_eager") if compiled else total
        loss = call(outputs, case.targets())
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in outputs.values())])
    torch.testing.assert_close(results[1], results[0])


class TestNothingWaits:
    def test_the_guard_sees_a_copy(self) -> None:
        with FakeTensorMode(), StayOnDevice():
            tensor = torch.zeros(3, device="cuda")
            with pytest.raises(AssertionError, match="copies"):
                tensor.cpu()
            with pytest.raises(Exception, match=r"waits|data-dependent|_local_scalar_dense"):
                tensor.sum().item()

    @pytest.mark.parametrize("form", ["factored", "dense"])
    @pytest.mark.parametrize("overlap", [False, True])
    def test_on_a_fake_gpu(self, form: str, overlap: bool) -> None:
        case = Case(counts=(3, 0, 2), overlap=overlap)
        with FakeTensorMode():
            criterion = MaskFormerCriterion(case.classes).to("cuda")
            outputs = {
                name: torch.empty(tensor.shape, device="cuda")
                for name, tensor in factored(case).items()
            }
            masks = [torch.empty(n, *case.size, dtype=torch.bool) for n in case.counts]
            labels = [torch.empty(n, dtype=torch.int64) for n in case.counts]
            maps = torch.empty(3, *case.size, dtype=torch.int16)
            if overlap:
                targets = SegmentTargets.from_masks(masks, labels)
            else:
                targets = SegmentTargets.from_label_maps(maps, labels)
            targets = targets.to("cuda")
            with StayOnDevice():
                given = outputs if form == "factored" else dense(outputs)
                losses = criterion(given, targets)
                total = criterion.total(losses)
        assert total.device.type == "cuda"
        assert len(losses) == 6

    def test_targets_built_on_a_fake_gpu(self) -> None:
        with FakeTensorMode(), StayOnDevice():
            criterion = MaskFormerCriterion(4)
            outputs = {k: torch.empty(v.shape, device="cuda") for k, v in factored(Case()).items()}
            targets = [
                {
                    "labels": torch.empty(n, dtype=torch.int64, device="cuda"),
                    "masks": torch.empty(n, 24, 20, device="cuda"),
                }
                for n in (3, 2)
            ]
            assert criterion(outputs, targets)["loss_ce"].device.type == "cuda"
            assert criterion.bad_costs.device.type == "cuda"

    def test_forward_and_backward(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same operations on the CPU, where backward runs too; no checks of values."""
        case = Case(counts=(3, 0))
        outputs = factored(case, grad=True)
        targets = case.targets()
        criterion = MaskFormerCriterion(case.classes)
        for module in ("mfkernels.targets", "mfkernels.ops.mask_loss"):
            monkeypatch.setattr(f"{module}.holds_values", lambda tensor: False)
        with StayOnDevice():
            criterion.total(criterion(outputs, targets)).backward()
        assert outputs["pixel_features"].grad is not None

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu(self) -> None:
        case = Case(counts=(3, 0))
        criterion = MaskFormerCriterion(case.classes)
        expected = criterion(factored(case), case.targets())
        outputs = {name: tensor.cuda() for name, tensor in factored(case).items()}
        losses = criterion(outputs, case.targets().to("cuda"))
        assert values(losses) == pytest.approx(values(expected), rel=1e-4)


def gradient_of_part(mine: slice) -> Tensor:
    """The gradient of all mask embeddings from the losses of some images."""
    case = Case(counts=(4, 3, 0, 0))
    outputs = factored(case, torch.float64)
    embed = outputs["mask_embed"].requires_grad_()
    part = {
        "class_logits": outputs["class_logits"][:, mine],
        "mask_embed": embed[:, mine],
        "pixel_features": outputs["pixel_features"][mine],
    }
    losses = MaskFormerCriterion(case.classes)(part, case.official_targets()[mine])
    (losses["loss_mask"] + losses["loss_dice_0"]).backward()
    gradient = embed.grad
    assert gradient is not None
    return gradient


def _process(rank: int, folder: Path) -> None:
    """Half of the images; gradients averaged as DDP does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    gradient = gradient_of_part(slice(2 * rank, 2 * rank + 2))
    torch.distributed.all_reduce(gradient)
    torch.save((gradient / 2, bad_costs_of_steps(rank)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """One without any segment gives the gradients of one; each counts its own bad costs."""
    expected = gradient_of_part(slice(4))
    run_two(_process, tmp_path)
    for rank in range(2):
        gradient, bad_costs = torch.load(tmp_path / f"{rank}.pt")
        assert bad_costs == [rank, rank]
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("segments", "share"), [(3, 0.6241), (20, 1.3759)])
def test_class_loss_of_each_process_or_of_all(
    monkeypatch: pytest.MonkeyPatch, segments: int, share: float
) -> None:
    """Of two processes with 3 and 20 segments and 100 queries each: 3 + 9.7 and 20 + 8 weights, of
    which the mean is 20.35. Over all, each loss is its official one times 12.7 or 28 by 20.35.
    """
    monkeypatch.setattr("mfkernels.criterion.mean_over_processes", lambda _: torch.tensor(20.35))
    case = Case(counts=(segments,), queries=100)
    outputs, targets = factored(case), case.targets()
    official = MaskFormerCriterion(case.classes)
    ours = MaskFormerCriterion(case.classes, class_loss="over_all")
    of_process, over_all = (criterion(outputs, targets) for criterion in (official, ours))
    for name, loss in of_process.items():
        ratio = share if name.startswith("loss_ce") else 1.0
        assert over_all[name].item() == pytest.approx(loss.item() * ratio, rel=1e-4)


def test_class_loss_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="class_loss must be one of per_process, over_all, got 1"):
        MaskFormerCriterion(3, class_loss=1)  # type: ignore[arg-type]


class _Counting(torch.nn.Module):
    """A network with its criterion in it, as models of `transformers` have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Linear(4, 5 * 8)
        self.criterion = MaskFormerCriterion(3)

    def forward(self, inputs: Tensor, targets: SegmentTargets) -> Tensor:
        outputs = {
            "class_logits": torch.zeros(1, 1, 5, 4),
            "mask_embed": self.embed(inputs).view(1, 1, 5, 8),
            "pixel_features": torch.ones(1, 8, 6, 6),
        }
        return self.criterion.total(self.criterion(outputs, targets))


def bad_costs_of_steps(rank: int) -> list[float]:
    """What a process reports after each of two steps; the first one of process 1 is NaN."""
    network = torch.nn.parallel.DistributedDataParallel(_Counting())
    masks = torch.rand(2, 12, 12) > 0.5
    targets = SegmentTargets.from_masks([masks], [torch.tensor([0, 1])])
    counts = []
    for factor in (torch.nan if rank else 1.0, 1.0):
        network(factor * torch.ones(1, 4), targets)
        counts.append(network.module.criterion.bad_costs.item())
    return counts


def test_the_count_of_bad_costs_goes_where_the_module_goes() -> None:
    criterion = _Counting()
    assert criterion.to("meta").criterion.bad_costs.is_meta
    assert criterion.half().criterion.bad_costs.dtype == torch.int64
    assert "criterion.bad_costs" not in criterion.state_dict()


@pytest.mark.parametrize("counts", [(3, 2), (6, 1)])
def test_layers_with_other_numbers_of_queries(counts: tuple[int, ...]) -> None:
    case = Case(counts=counts)
    layers = [dense(factored(Case(counts=counts, queries=queries))) for queries in (5, 7, 5)]
    outputs = {
        **{key: layers[0][key] for key in ("pred_logits", "pred_masks")},
        "aux_outputs": [{k: v for k, v in x.items() if k != "aux_outputs"} for x in layers[1:]],
    }
    criterion = MaskFormerCriterion(case.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = criterion(outputs, case.targets())
        assert criterion.match(outputs, case.targets()).shape == (3, 2, max(counts))
    expected = official(outputs, case.official_targets(), case.classes)
    assert values(losses) == pytest.approx(values(expected), rel=1e-5)


class TestFixedMatching:
    """Every class has a query of its own, whatever it predicts (paper table 4)."""

    case = Case(counts=(2, 3, 0), queries=4)
    labels = (torch.tensor([3, 0]), torch.tensor([1, 2, 1]), torch.tensor([], dtype=torch.int64))
    assignment = torch.tensor([[3, 0, -1], [1, 2, -1], [-1, -1, -1]])  # of two of a class, one

    def targets(self) -> SegmentTargets:
        return SegmentTargets.from_label_maps(self.case.label_maps(), self.labels)

    @pytest.mark.parametrize("backend", ["reference", "native"])
    def test_the_query_of_a_segment_is_its_class(self, backend: str) -> None:
        outputs, targets = factored(self.case, grad=True), self.targets()
        criterion = MaskFormerCriterion(4, matching="fixed")
        with use_backend(backend):
            assignment = criterion.match(outputs, targets)
            assert assignment.tolist() == [self.assignment.tolist()] * self.case.layers
            losses = criterion(outputs, targets)
            focal, dice = mask_loss(
                outputs["mask_embed"], outputs["pixel_features"], targets, assignment
            )
        truth = torch.tensor([[0, 4, 4, 3], [4, 1, 2, 4], [4, 4, 4, 4]])
        weight = torch.tensor([1.0, 1, 1, 1, 0.1])
        classes = cross_entropy(outputs["class_logits"][-1].mT, truth, weight)
        for name, expected in (("ce", classes), ("mask", focal[-1]), ("dice", dice[-1])):
            assert losses[f"loss_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)
        criterion.total(losses).backward()

    def test_nothing_to_match(self) -> None:
        case = Case(counts=(0, 0), queries=4)
        matched = MaskFormerCriterion(4, matching="fixed").match(factored(case), case.targets())
        assert matched.shape == (2, 2, 0)

    def test_what_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"one query per class \(4\), got 7"):
            MaskFormerCriterion(4, matching="fixed")(factored(Case()), Case().targets())
        with pytest.raises(ValueError, match="matching must be one of bipartite, fixed, got 'no'"):
            MaskFormerCriterion(4, matching="no")  # type: ignore[arg-type]
