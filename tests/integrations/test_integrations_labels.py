"""Labels, indices and layers at their edges: patched models take what the original ones take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from helpers import integrations_models as models  # noqa: E402
from transformers.models.mask2former import modeling_mask2former as mask2former  # noqa: E402
from transformers.models.maskformer import modeling_maskformer as maskformer  # noqa: E402

from mfkernels import use_backend  # noqa: E402
from mfkernels.integrations.transformers import patch, patching, unpatch  # noqa: E402

MODULES = {"maskformer": maskformer, "mask2former": mask2former}
K = 4


@pytest.fixture(params=MODULES)
def criterion(request: pytest.FixtureRequest) -> nn.Module:
    family = next(each for each in patching.FAMILIES if each.name == request.param)
    return family.make_criterion(MODULES[request.param])


@pytest.fixture(params=["native", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.param):
        yield


def layers(*queries: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "masks_queries_logits": 3 * torch.randn(2, count, 8, 12, generator=generator),
            "class_queries_logits": torch.randn(2, count, K + 1, generator=generator),
        }
        for count in queries
    ]


def run(module: nn.Module, predictions: list[dict[str, Tensor]], labels: list[Tensor]) -> Any:
    masks = models.targets((3, 2))["mask_labels"]
    masks = [mask[: len(label)] for mask, label in zip(masks, labels, strict=True)]
    torch.manual_seed(5)
    return module(*predictions[-1].values(), masks, labels, predictions[:-1])


def same(module: nn.Module, predictions: list[dict[str, Tensor]], labels: list[Tensor]) -> None:
    theirs = run(module, predictions, labels)
    patch(module)
    ours = run(module, predictions, labels)
    assert list(ours) == list(theirs)
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=2e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("first", [[0, K, 1], [K, K, K], [K, 2], []])
def test_no_object(criterion: nn.Module, first: list[int]) -> None:
    labels = [torch.tensor(first, dtype=torch.int64), torch.tensor([2, 3])]
    same(criterion, layers(6, 6), labels)


@pytest.mark.parametrize("wrong", [-1, K + 1])
def test_other_labels_are_refused(criterion: nn.Module, wrong: int) -> None:
    labels = [torch.tensor([0, wrong, 1]), torch.tensor([2, 3])]
    with pytest.raises((IndexError, RuntimeError)):
        run(criterion, layers(6), labels)
    patch(criterion)
    theirs = isinstance(criterion, mask2former.Mask2FormerLoss) and wrong == -1
    # The class loss is transformers', and so is what it says.
    with pytest.raises(
        IndexError if theirs else ValueError,
        match="Target -1" if theirs else rf"must be in 0..3 .*4, \"no object\".*{wrong}",
    ):
        run(criterion, layers(6), labels)


def test_layers_with_other_numbers_of_queries(criterion: nn.Module) -> None:
    same(criterion, layers(7, 5, 2), [torch.tensor([0, 1, 3]), torch.tensor([2, 3])])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_of_another_matcher(criterion: nn.Module, dtype: torch.dtype) -> None:
    class Fixed(nn.Module):
        def forward(self, *_: Any) -> Any:
            return [(torch.tensor([0, 4]).to(dtype), torch.tensor([1, 0]).to(dtype))] * 2

    criterion.matcher = Fixed()
    same(criterion, layers(6, 6), [torch.tensor([0, 1, 3]), torch.tensor([2, 3])])


def test_labels_of_32_bits() -> None:
    """The original fails at its class loss."""
    module = patching.FAMILIES[0].make_criterion(maskformer)
    labels = [torch.tensor([0, 1, 3]), torch.tensor([2, 3])]
    expected = run(module, layers(6), labels)
    patch(module)
    ours = run(module, layers(6), [label.int() for label in labels])
    for name, loss in expected.items():
        torch.testing.assert_close(ours[name], loss, rtol=2e-6, atol=1e-6)


def test_what_is_no_tensor_is_refused(criterion: nn.Module) -> None:
    patch(criterion)
    layer = layers(6)[0].values()
    labels, masks = [torch.tensor([0, 1, 3]), torch.tensor([2, 3])], models.targets((3, 2))
    arrays = [mask.numpy() for mask in masks["mask_labels"]]
    for name, given in (
        ("masks", (arrays, labels)),
        ("labels", (masks["mask_labels"], [label.tolist() for label in labels])),
    ):
        with pytest.raises(TypeError, match=rf"{name}\[0\] must be a torch.Tensor, got (nd|list)"):
            criterion(*layer, *given, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_meta_tensors_give_shapes(criterion: nn.Module, dtype: torch.dtype) -> None:
    patch(criterion)
    layer = [tensor.to("meta") for tensor in layers(6)[0].values()]
    masks = [mask.to("meta", dtype) for mask in models.targets((3, 2))["mask_labels"]]
    labels = [torch.tensor([0, 1, 3], device="meta"), torch.tensor([2, 3], device="meta")]
    with use_backend("auto"):
        losses = criterion.to("meta")(*layer, masks, labels, None)
    assert {loss.shape for loss in losses.values()} == {()}


def test_logits_of_a_video(criterion: nn.Module) -> None:
    (layer,) = layers(6)
    masks = layer["masks_queries_logits"]
    layer["masks_queries_logits"] = masks[:, :, None].expand(-1, -1, 2, -1, -1)
    patch(criterion)
    with pytest.raises(ValueError, match=r"must be \[B, Q, h, w\], got \[2, 6, 2, 8, 12\]"):
        run(criterion, [layer], [torch.tensor([0, 1, 3]), torch.tensor([2, 3])])


def matching_arguments(padding: float) -> tuple[Any, ...]:
    masks = models.targets((3, 2))["mask_labels"]
    for mask in masks:
        mask[:, -8:] = padding
    return (*layers(6)[0].values(), masks, [torch.tensor([0, 1, 3]), torch.tensor([2, 3])])


def indices_of(matcher: Any, arguments: tuple[Any, ...]) -> list[list[list[int]]]:
    torch.manual_seed(5)
    return [[index.tolist() for index in pair] for pair in matcher(*arguments)]


@pytest.mark.parametrize("padding", [0.0, 0.25, 255.0])
def test_matching_of_masks_of_any_values(
    criterion: nn.Module, padding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = matching_arguments(padding)
    theirs = indices_of(criterion.matcher, arguments)
    patch(criterion)
    for module in MODULES.values():
        monkeypatch.setattr(module, "linear_sum_assignment", lambda *_: pytest.fail("SciPy"))
    assert indices_of(criterion.matcher, arguments) == theirs


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_compiles_into_one_graph(criterion: nn.Module) -> None:
    # Where an Accelerator was, transformers asks it; torch 2.11 cannot trace that of its 1.2.
    AcceleratorState._reset_state(reset_partial_state=True)
    patch(criterion)
    *logits, masks, labels = matching_arguments(0.0)
    torch.compiler.reset()
    compiled = torch.compile(criterion.matcher, fullgraph=True, backend="eager")
    arguments = (*logits, masks, labels)
    assert indices_of(compiled, arguments) == indices_of(criterion.matcher, arguments)
    whole = torch.compile(criterion, fullgraph=True, backend="eager")
    arguments = (*logits, [mask.bool() for mask in masks], labels)
    results = []
    for call in (criterion, whole):
        torch.manual_seed(5)
        results.append(call(*arguments))
    torch.testing.assert_close(results[1], results[0])


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    unpatch()
