"""Inference on a GPU that is not there: who serves it, and what it copies to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.gpu.stay_on_device import StayOnDevice
from helpers.strategies import Case
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mfkernels import backend, panoptic_segmentation, semantic_segmentation, use_backend

pytestmark = pytest.mark.skipif(
    backend.part("triton").problem is not None, reason=str(backend.part("triton").problem)
)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    class_logits, embed, features = Case(layers=1).predictions()
    return tuple(torch.empty(x.shape, device="cuda") for x in (class_logits[0], embed[0], features))


@pytest.mark.parametrize("return_scores", [False, True])
def test_semantic_copies_nothing_to_the_host(return_scores: bool) -> None:
    with FakeTensorMode(), use_backend("native"), StayOnDevice():
        found = semantic_segmentation(*inputs(), (24, 20), return_scores=return_scores)
    labels = found[0] if return_scores else found
    assert labels.shape == (2, 24, 20)
    assert labels.device.type == "cuda"


def test_panoptic_copies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []

    def tolist(tensor: Tensor) -> Any:
        copies.append(tensor.shape)
        return np.zeros(tensor.shape).tolist()

    with FakeTensorMode(), use_backend("native"), StayOnDevice():
        given = inputs()
        monkeypatch.setattr(FakeTensor, "tolist", tolist)
        results = panoptic_segmentation(*given, (24, 20), thing_classes=[0, 1])
    assert copies == [(2, 4, given[0].shape[1])]
    assert all(panoptic.device.type == "cuda" for panoptic, _ in results)
