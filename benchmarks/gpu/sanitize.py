"""Small calls of every GPU kernel, to be run under compute-sanitizer."""

from __future__ import annotations

import torch

import mfkernels


def assignment() -> None:
    """One warp on chip, one warp off chip, eight warps; ragged, infeasible; with
    and without SciPy's choice among ties.
    """
    for shape in ((3, 5, 7), (4, 40, 20), (2, 66, 66), (1, 300, 300), (1, 20, 600)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            cost = torch.randn(shape, device="cuda").to(dtype)
            cost[:, ::2, 1:] = float("inf")
            counts = torch.randint(0, shape[1] + 1, shape[:1], device="cuda")
            for strict in (False, True):
                mfkernels.batch_linear_assignment(cost, counts, strict=strict)


def criterion() -> None:
    """Matching cost, mask and class losses with gradients, with one image without segments."""
    maps = torch.randint(-1, 3, (2, 37, 50))
    maps[1] = -1
    labels = [torch.tensor([1, 0, 1]), torch.tensor([], dtype=torch.int64)]
    targets = mfkernels.SegmentTargets.from_label_maps(maps, labels).to(torch.device("cuda"))
    loss = mfkernels.MaskFormerCriterion(2).cuda()
    for dtype in (torch.float32, torch.bfloat16):
        shapes = {"class_logits": (2, 2, 7, 3), "mask_embed": (2, 2, 7, 20)}
        shapes["pixel_features"] = (2, 20, 9, 13)
        outputs = {
            name: torch.randn(shape, device="cuda").to(dtype).requires_grad_()
            for name, shape in shapes.items()
        }
        loss.total(loss(outputs, targets)).backward()


def focal_dice() -> None:
    for elements in (1, 77, 5000):
        logits = torch.randn(3, elements, device="cuda", requires_grad=True)
        masks = torch.rand(3, elements, device="cuda") < 0.3
        (sum(mfkernels.focal_dice_loss(logits, masks))).backward()
        mfkernels.sigmoid_focal_loss(logits, masks.float()).sum().backward()


def segmentation() -> None:
    """Few and many classes; masks resized once (to the input size) and twice (to another size)."""
    embed = torch.randn(2, 9, 20, device="cuda")
    features = torch.randn(2, 20, 11, 13, device="cuda")
    for classes in (1, 5, 300):
        logits = torch.randn(2, 9, classes + 1, device="cuda")
        for size in ((44, 52), (31, 67)):
            arguments = (logits, embed, features, size)
            mfkernels.semantic_segmentation(*arguments, input_size=(44, 52))
            mfkernels.panoptic_segmentation(
                *arguments, input_size=(44, 52), thing_classes=[0], object_mask_threshold=0.1
            )


if __name__ == "__main__":
    with mfkernels.use_backend("native"):
        for check in (assignment, criterion, focal_dice, segmentation):
            check()
    torch.cuda.synchronize()
    print("done")
