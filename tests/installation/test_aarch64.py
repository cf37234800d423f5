"""The CPU kernels built for 64-bit ARM, run by an emulator and held beside plain PyTorch.

`make aarch64` runs this alone; on Debian it takes `apt install g++-aarch64-linux-gnu qemu-user`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.native_builds import CMAKE, NINJA
from helpers.repository import ROOT
from torch import Tensor

import mfkernels
from mfkernels import SegmentTargets, use_backend
from mfkernels.ops.focal_dice.reference import focal_dice_loss
from mfkernels.ops.mask_loss.reference import losses_of_segments

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
LAYERS, IMAGES, QUERIES, CLASSES, CHANNELS, SEGMENTS = 2, 2, 21, 7, 19, 4
MASK, TARGET = (7, 9), (28, 33)
COUNTS = [4, 2]

pytestmark = [
    pytest.mark.skipif(None in (CMAKE, NINJA), reason="needs CMake and Ninja"),
    pytest.mark.skipif(
        None in (COMPILER, EMULATOR), reason="needs g++-aarch64-linux-gnu and qemu-user"
    ),
    pytest.mark.long,
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aarch64")
    configure = [
        *(str(CMAKE), "-S", str(ROOT / "tests" / "native"), "-B", str(folder), "-GNinja"),
        *(f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DCMAKE_CXX_COMPILER={COMPILER}"),
        *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
        *("-DCMAKE_BUILD_TYPE=Test", "-DCMAKE_CXX_FLAGS_TEST=-O1"),
    ]
    for command in (configure, [str(CMAKE), "--build", str(folder)]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "portable"


class Problem:
    """Inputs, and what plain PyTorch makes of them in a precision."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64).float().double()

        self.class_logits = normal(LAYERS, IMAGES, QUERIES, CLASSES + 1)
        self.embed = normal(LAYERS, IMAGES, QUERIES, CHANNELS)
        self.features = normal(IMAGES, CHANNELS, *MASK)
        self.label_map = torch.stack(
            [torch.randint(-1, count, TARGET, generator=random) for count in COUNTS]
        )
        self.labels = [torch.arange(count) for count in COUNTS]
        self.matches = torch.full((LAYERS, IMAGES, SEGMENTS), -1)
        for image, count in enumerate(COUNTS):
            self.matches[:, image, :count] = torch.arange(count) * 3
        self.points = torch.rand(LAYERS * IMAGES * QUERIES, 5, 2, generator=random).double()

    def given(self) -> bytes:
        tensors = [self.class_logits, self.embed, self.features, self.label_map]
        tensors += [torch.tensor(COUNTS), torch.cat(self.labels), self.matches, self.points]
        return torch.cat([x.double().flatten() for x in tensors]).numpy().tobytes()

    def results(self, dtype: torch.dtype) -> dict[str, Tensor]:
        class_logits, embed, features, points = (
            x.to(dtype) for x in (self.class_logits, self.embed, self.features, self.points)
        )
        targets = SegmentTargets.from_label_maps(self.label_map, self.labels)
        embed.requires_grad_()
        features.requires_grad_()
        with use_backend("reference"):
            cost = mfkernels.matching_cost(class_logits, embed, features, targets)
            assignment = mfkernels.batch_linear_assignment(cost)
            logits = mfkernels.mask_logits(embed, features)
            images = logits.detach().flatten(0, 2).requires_grad_()
            values = mfkernels.sample_points(images.detach(), points)
        losses = losses_of_segments(embed, features, targets, self.matches, 0.25, 2.0)
        gradients = torch.autograd.grad(sum(x.sum() for x in losses), (embed, features))
        hard = (torch.arange(images.numel()) % 3 == 0).view(len(images), -1).to(dtype)
        focal, dice = focal_dice_loss(images.flatten(1), hard, 0.25, 2.0)
        (grad,) = torch.autograd.grad(focal.sum() + dice.sum(), images)
        return {
            "cost": cost,
            "assignment": assignment,
            **dict(zip(("focal", "dice"), losses, strict=True)),
            **dict(zip(("grad_embed", "grad_features"), gradients, strict=True)),
            "logits": logits,
            "values": values,
            "focal of rows": focal,
            "dice of rows": dice,
            "gradient of rows": grad,
            **self.inference(logits[0, 0].detach()),
        }

    def inference(self, logits: Tensor) -> dict[str, Tensor]:
        """Of the first image and layer."""
        index = torch.arange(QUERIES * CLASSES)
        probability = ((index * 7) % 11).to(logits.dtype) / 11
        large = F.interpolate(logits[None], TARGET, mode="bilinear")[0].sigmoid()
        scores = torch.einsum("qk,qhw->khw", probability.view(QUERIES, CLASSES), large)
        return {
            "scores": scores,
            "owners": (probability[:QUERIES, None, None] * large).argmax(0),
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_plain_pytorch(program: Path, dtype: torch.dtype) -> None:
    problem = Problem()
    sizes = (LAYERS, IMAGES, QUERIES, CLASSES + 1, CHANNELS, *MASK, SEGMENTS, *TARGET)
    name = "double" if dtype == torch.float64 else "float"
    command = [str(EMULATOR), "-L", "/usr/aarch64-linux-gnu", str(program), name]
    run = subprocess.run(
        [*command, *map(str, sizes)], input=problem.given(), capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == b"baseline\n"
    ours = torch.from_numpy(np.frombuffer(run.stdout).copy())
    plain, truth = problem.results(dtype), problem.results(torch.float64)
    assert len(ours) == sum(x.numel() for x in truth.values())
    for key, exact in truth.items():
        found, ours = ours[: exact.numel()].view_as(exact), ours[exact.numel() :]
        if not exact.is_floating_point():
            assert torch.equal(found, exact.double()), key
            continue
        largest = exact.abs().max()
        # What is exact in float64 was rounded, too.
        roundings = 8 if dtype == torch.float32 else 64
        allowed = 2 * (plain[key] - exact).abs().max()
        allowed += roundings * torch.finfo(dtype).eps * largest
        assert (found - exact).abs().max() <= allowed, key
