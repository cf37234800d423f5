"""Fine-tune a Hugging Face MaskFormer on a folder of images, with the kernels of mfkernels.

    python examples/finetune_hf_maskformer.py                     on generated pictures
    python examples/finetune_hf_maskformer.py --data FOLDER       on your own data

FOLDER contains `classes.txt` (one name per line), `train/images`, `train/labels`, `val/images` and
`val/labels`. Labels are PNG files named like their images; each pixel value is a class index, and
255 means unlabelled. The model is small and starts from random weights, so that nothing is
downloaded; for a real run, use `from_pretrained` in `build_model`. Needs transformers and
accelerate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    ResNetConfig,
)

from mfkernels.integrations.transformers import patch, unpatch

UNLABELLED = 255


# %% Data


def draw_folder(folder: Path, size: int, train: int, val: int) -> None:
    """Write generated pictures of simple shapes in the folder layout that this example reads."""
    from maskformer.config.schema import ShapesConfig
    from maskformer.data import Shapes

    config = ShapesConfig(image_size=(size, size), train_images=train, val_images=val)
    (folder / "classes.txt").write_text("\n".join(Shapes.info.classes) + "\n")
    for split in ("train", "val"):
        for name in ("images", "labels"):
            (folder / split / name).mkdir(parents=True)
        shapes = Shapes(config, split)
        for index in range(len(shapes)):
            sample = shapes[index]
            label = sample.semantic_map()
            label = label.where(label >= 0, UNLABELLED).to(torch.uint8)
            image = sample.image.permute(1, 2, 0).contiguous()
            Image.fromarray(image.numpy()).save(folder / split / "images" / f"{index:04}.png")
            Image.fromarray(label.numpy()).save(folder / split / "labels" / f"{index:04}.png")


class Pictures(Dataset[tuple[Image.Image, Image.Image]]):
    """Images and label maps of one split."""

    def __init__(self, folder: Path) -> None:
        self.images = sorted((folder / "images").iterdir())
        self.labels = [folder / "labels" / f"{image.stem}.png" for image in self.images]
        if not self.images:
            raise ValueError(f"{folder / 'images'} contains no images")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        return Image.open(self.images[index]).convert("RGB"), Image.open(self.labels[index])


class Collate:
    """Makes a batch with the image processor, and keeps the label maps unchanged in `maps`."""

    def __init__(self, processor: MaskFormerImageProcessor) -> None:
        self.processor = processor

    def __call__(self, samples: list[tuple[Image.Image, Image.Image]]) -> dict[str, Any]:
        images = [image for image, _ in samples]
        maps = [np.array(label) for _, label in samples]
        batch = dict(self.processor(images=images, segmentation_maps=maps, return_tensors="pt"))
        batch["maps"] = [torch.from_numpy(each.astype(np.int64)) for each in maps]
        return batch


# %% Model


def build_model(classes: list[str]) -> MaskFormerForInstanceSegmentation:
    """A MaskFormer with a small ResNet; for a real run, return
    `MaskFormerForInstanceSegmentation.from_pretrained("facebook/maskformer-...")` instead.
    """
    config = MaskFormerConfig(
        backbone_config=ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 256],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        decoder_config=DetrConfig(d_model=128, decoder_layers=3, num_queries=50, dropout=0.0),
        fpn_feature_size=128,
        mask_feature_size=128,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    model = MaskFormerForInstanceSegmentation(config)
    # The library's initial weights are meant to be replaced by a checkpoint (normalisation layers
    # start near 0), so initialise the layers for training from scratch.
    for module in model.model.pixel_level_module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(model.model.transformer_module.queries_embedder.weight)
    return model


# %% Training and evaluation


def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    inputs = {name: batch[name] for name in ("pixel_values", "mask_labels", "class_labels")}
    loss: Tensor = model(**inputs).loss
    return loss


def step_time(model: nn.Module, batch: dict[str, Any], accelerator: Accelerator) -> float:
    """Median milliseconds of three forward and backward passes, after one for warm-up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        accelerator.backward(loss_of(model, batch))
        model.zero_grad()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader[Any],
    processor: MaskFormerImageProcessor,
    accelerator: Accelerator,
    classes: int,
) -> float:
    """Mean IoU in percent, over the classes that occur in the labels or the predictions."""
    model.eval()
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=accelerator.device)
    for batch in loader:
        outputs = model(pixel_values=batch["pixel_values"])
        sizes = [tuple(each.shape) for each in batch["maps"]]
        found = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        for predicted, truth in zip(found, batch["maps"], strict=True):
            known = truth != UNLABELLED
            pairs = truth[known] * classes + predicted[known]
            confusion += pairs.bincount(minlength=classes**2).view(classes, classes)
    model.train()
    confusion = accelerator.reduce(confusion)
    overlap = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - overlap
    return 100 * float((overlap / union)[union > 0].mean())


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of images (default: generate them)")
    parser.add_argument("--size", type=int, default=128, help="side of generated images, in pixels")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data
        if folder is None:
            folder = Path(scratch)
            draw_folder(folder, options.size, train=options.batch * min(options.steps, 200), val=16)
        classes = (folder / "classes.txt").read_text().split("\n")
        classes = [name for name in classes if name]
        processor = MaskFormerImageProcessor(do_resize=False, ignore_index=UNLABELLED)
        train, val = (
            DataLoader(
                Pictures(folder / split),
                batch_size=options.batch,
                shuffle=split == "train",
                drop_last=split == "train",
                collate_fn=Collate(processor),
            )
            for split in ("train", "val")
        )
        if len(train) == 0:
            raise ValueError(
                f"{folder / 'train'} contains less than a batch of {options.batch} images"
            )
        accelerator = Accelerator()
        model = build_model(classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
        model, optimizer, train, val = accelerator.prepare(model, optimizer, train, val)

        first = next(iter(train))
        before_patch = step_time(model, first, accelerator)
        patch(model)  # the only change needed to use mfkernels
        after_patch = step_time(model, first, accelerator)
        accelerator.print(
            f"step: {before_patch:.0f} ms unpatched, {after_patch:.0f} ms patched "
            f"({before_patch / after_patch:.2f}x)"
        )

        start = evaluate(model, val, processor, accelerator, len(classes))
        accelerator.print(f"mIoU before training: {start:.1f} %")
        model.train()
        bar = tqdm(total=options.steps, disable=not accelerator.is_main_process)
        while bar.n < options.steps:
            for batch in train:
                loss = loss_of(model, batch)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
                bar.update()
                if bar.n == options.steps:
                    break
        bar.close()
        end = evaluate(model, val, processor, accelerator, len(classes))
        accelerator.print(f"mIoU after {options.steps} steps: {end:.1f} %")
        unpatch(model)
    return {
        "step_ms": before_patch,
        "patched_step_ms": after_patch,
        "miou_before": start,
        "miou_after": end,
        "loss": float(loss.detach()),
    }


if __name__ == "__main__":
    main()
