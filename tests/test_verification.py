"""`use_backend("verify")`: a kernel that is off is found where it is called."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.strategies import Case

from mfkernels import MaskFormerCriterion, backend, mask_loss, use_backend, verification

CASE = Case(counts=(3, 2), queries=9, channels=16, low=(12, 11), size=(24, 22))

pytestmark = pytest.mark.skipif(
    not backend.part("cpu").usable, reason=str(backend.part("cpu").problem)
)


@pytest.fixture(autouse=True)
def nothing_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "largest_errors", {})


def step() -> torch.Tensor:
    predictions = [x.requires_grad_() for x in CASE.predictions()]
    criterion = MaskFormerCriterion(CASE.classes)
    names = ("class_logits", "mask_embed", "pixel_features")
    total = criterion.total(criterion(dict(zip(names, predictions, strict=True)), CASE.targets()))
    total.backward()
    return torch.cat([total.detach()[None], *(x.grad.flatten() for x in predictions)])


def test_every_operation_of_a_step_is_held_beside_pytorch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = step()
    with use_backend("verify"):
        assert torch.equal(step(), served), "what is verified is what auto serves"
    assert set(verification.largest_errors) == {
        "matching_cost",
        "assignment",
        "class_loss",
        "mask_loss",
        "loss_sums",
    }
    assert all(error < 1e-5 for error in verification.largest_errors.values())
    assert not caplog.records


def test_a_kernel_that_is_off_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    operator = torch.ops.mfkernels.mask_loss
    monkeypatch.setattr(
        torch.ops.mfkernels, "mask_loss", lambda *given: [1.01 * x for x in operator(*given)]
    )
    _, embed, features = CASE.predictions()
    assignment = torch.tensor([[[0, 1, 2], [3, 4, -1]]]).expand(CASE.layers, 2, 3)
    with use_backend("verify"), caplog.at_level(logging.WARNING):
        mask_loss(embed, features, CASE.targets(), assignment)
    assert verification.largest_errors["mask_loss"] == pytest.approx(0.01, rel=0.1)
    assert "mask_loss: the native result differs" in caplog.text


@pytest.mark.parametrize(
    ("ours", "plain", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([float("nan"), float("inf")], [float("nan"), float("inf")], 0.0),
        ([], [], 0.0),
        ([True, False, True, True], [True, True, True, True], 0.25),
    ],
)
def test_differences(ours: list[float], plain: list[float], error: float) -> None:
    assert verification.difference(torch.tensor(ours), torch.tensor(plain)) == error


def test_a_nan_that_plain_pytorch_does_not_have_is_no_small_error() -> None:
    found = verification.difference(torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 1.0]))
    assert not found <= verification.SUSPICIOUS
