"""Matcher and criterion with the official signatures: golden numbers, and Mask2Former's points."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import golden
from torch import Tensor, nn

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
    gradients = [torch.autograd.grad(sum(some.values()), leaves) for some in (losses, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


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
    # 5 here, 20 in all: 5 a process, as alone.
    assert float(losses["loss_mask"]) == pytest.approx(golden.LOSSES["loss_mask"], abs=2e-6)
    empty = maskformer()(golden.official_outputs(), golden.targets(empty=(1,)))
    whole = golden.LOSSES_WITHOUT_IMAGE_1["loss_mask"] * 2 / (17 / 4)
    assert float(empty["loss_mask"]) == pytest.approx(whole, abs=2e-6)


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
