"""Further metrics of Cityscapes: the IoU of categories, and the instance-weighted iIoU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskformer.data.label_reader import read_labels
from maskformer.data.sample import Sample
from maskformer.errors import ConfigError, DatasetError
from maskformer.evaluation.exact_sums import no_terms, terms, totals
from maskformer.evaluation.semantic_quality import SemanticQuality
from maskformer.system.text import escape

LABEL_SUFFIXES = ("_labelIds.png", "_labelTrainIds.png")
INSTANCE_SUFFIX = "_instanceIds.png"
_PER_LABEL = 1000
"""The id of an instance is label id * 1000 + number; smaller values are not instances."""


class CityscapesClass(NamedTuple):
    """A class that Cityscapes evaluates.

    Attributes:
        label_id: the value of the class in `*_labelIds.png`.
        category: the category of the class.
        instance_size: the mean number of pixels of an instance in the training images, from the
            official scripts; None for stuff.
    """

    label_id: int
    category: str
    instance_size: float | None = None


CLASSES = {
    "road": CityscapesClass(7, "flat"),
    "sidewalk": CityscapesClass(8, "flat"),
    "building": CityscapesClass(11, "construction"),
    "wall": CityscapesClass(12, "construction"),
    "fence": CityscapesClass(13, "construction"),
    "pole": CityscapesClass(17, "object"),
    "traffic light": CityscapesClass(19, "object"),
    "traffic sign": CityscapesClass(20, "object"),
    "vegetation": CityscapesClass(21, "nature"),
    "terrain": CityscapesClass(22, "nature"),
    "sky": CityscapesClass(23, "sky"),
    "person": CityscapesClass(24, "human", 3462.4756337644),
    "rider": CityscapesClass(25, "human", 3930.4788056518),
    "car": CityscapesClass(26, "vehicle", 12794.0202738185),
    "truck": CityscapesClass(27, "vehicle", 27855.1264367816),
    "bus": CityscapesClass(28, "vehicle", 35732.1511111111),
    "train": CityscapesClass(31, "vehicle", 67583.7075812274),
    "motorcycle": CityscapesClass(32, "vehicle", 6298.7200839748),
    "bicycle": CityscapesClass(33, "vehicle", 4672.3249222261),
}


class CityscapesQuality(SemanticQuality):
    """`SemanticQuality`, the IoU of categories, and the iIoU of thing classes and categories.

    In iIoU, the weight of each pixel of an instance is the mean size of instances of its class
    divided by the size of this instance. False positive pixels have weight 1.

    Args:
        classes: the names of the classes, which must be among `CLASSES`.

    Raises:
        ConfigError: there are other classes.
    """

    groups: Tensor
    sizes: Tensor
    right: Tensor
    missed: Tensor

    def __init__(self, classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(len(classes), **kwargs)
        unknown = [name for name in classes if name not in CLASSES]
        if unknown:
            raise ConfigError(
                "eval.cityscapes supports only the 19 classes of Cityscapes, but the data has "
                f"{', '.join(map(escape, unknown[:4]))}; set eval.cityscapes: false"
            )
        known = [CLASSES[name] for name in classes]
        self.categories = tuple(dict.fromkeys(known_class.category for known_class in known))
        members = [
            [known_class.category == name for known_class in known] for name in self.categories
        ]
        # The groups are the single classes, followed by the categories.
        groups = torch.cat([torch.eye(len(known)), torch.tensor(members).float()]).double()
        self.register_buffer("groups", groups, persistent=False)
        sizes = [known_class.instance_size or 0 for known_class in known]
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.double), persistent=False)
        self._labels = {
            known_class.label_id: k
            for k, known_class in enumerate(known)
            if known_class.instance_size
        }
        for name in ("right", "missed"):
            self.add_state(name, no_terms(len(groups)), dist_reduce_fx="sum")

    def add_instances(self, prediction: Tensor, instances: Tensor) -> None:
        """Add the instances of an image, in addition to `update`.

        Args:
            prediction: `[H, W]`, the predicted classes, -1 for void.
            instances: `[H, W]`, the ids in `*_instanceIds.png`.

        Raises:
            ValueError: the shapes differ.
        """
        if prediction.shape != instances.shape:
            raise ValueError(
                f"instances must have the shape of prediction {list(prediction.shape)}, got "
                f"{list(instances.shape)}"
            )
        device, count = self.right.device, self.num_classes
        found, index = instances.to(device).unique(return_inverse=True)
        pairs = index * (count + 1) + prediction.to(device).long() + 1
        counts = torch.bincount(pairs.flatten(), minlength=len(found) * (count + 1))
        counts = counts.view(-1, count + 1).double()
        labels = [self._labels.get(number // _PER_LABEL, -1) for number in found.tolist()]
        classes = torch.tensor(labels, device=device)
        counts, classes = counts[classes >= 0], classes[classes >= 0]
        size = counts.sum(1)
        weight = (self.sizes[classes] / size)[:, None] * self.groups[:, classes].T
        inside = counts[:, 1:] @ self.groups.T
        self.right += terms(weight * inside).sum(1)
        self.missed += terms(weight * (size[:, None] - inside)).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores as fractions, float64. Classes and categories that neither occur nor
        are predicted have NaN, and are ignored in means.

        Returns:
            The scores of `SemanticQuality`; the means `category_iou`, `iiou` and `category_iiou`;
            the scores of each category, such as `category_iou_flat`; and `iiou_per_class` `[K]`,
            NaN for stuff.
        """
        groups, count = self.groups, self.num_classes
        seen = self.confusion[:count].double()  # void ground truth is in the last row
        hits = (groups @ seen[:, :count] * groups).sum(1)
        truth, predicted = groups @ seen.sum(1), groups @ seen[:, :count].sum(0)
        iou = hits / (truth + predicted - hits)
        of_things = groups @ (self.sizes > 0).double() == groups.sum(1)
        right, missed = totals(self.right), totals(self.missed)
        weighted = right / (right + missed + predicted - hits)
        weighted = torch.where(of_things, weighted, torch.nan)
        scores = {
            "category_iou": iou[count:].nanmean(),
            "iiou": weighted[:count].nanmean(),
            "category_iiou": weighted[count:].nanmean(),
        }
        for name, plain, other in zip(self.categories, iou[count:], weighted[count:], strict=True):
            scores[f"category_iou_{name}"] = plain
            if not other.isnan():
                scores[f"category_iiou_{name}"] = other
        return super().compute() | scores | {"iiou_per_class": weighted[:count]}


def instance_file(labels: Path) -> Path:
    """Return the instance file that belongs to a label file of Cityscapes.

    Raises:
        DatasetError: the label file is not named as in Cityscapes.
    """
    for suffix in LABEL_SUFFIXES:
        if labels.name.endswith(suffix):
            return labels.with_name(labels.name.removesuffix(suffix) + INSTANCE_SUFFIX)
    raise DatasetError(
        f"eval.cityscapes needs label files named *{' or *'.join(LABEL_SUFFIXES)}, got "
        f"{escape(labels)}; set eval.cityscapes: false"
    )


def check_instance_files(files: Iterable[tuple[Path, ...]]) -> None:
    """Check before an evaluation that all instance files exist.

    Args:
        files: the images, each with its label file.

    Raises:
        DatasetError: instance files are missing.
    """
    wanted = [instance_file(pair[1]) for pair in files]
    missing = [file for file in wanted if not file.is_file()]
    if missing:
        raise DatasetError(
            f"eval.cityscapes needs an instance file next to each label file; {len(missing)} of "
            f"{len(wanted)} are missing, first {escape(missing[0])}; extract them from the archive "
            "gtFine, or set eval.cityscapes: false"
        )


def read_instances(sample: Sample) -> Tensor:
    """Read the instance ids `[H, W]` int32 of a sample.

    Raises:
        DatasetError: the instance file is missing, broken, or has another size.
    """
    if sample.label_file is None:
        raise DatasetError("eval.cityscapes needs data.format: folder; set eval.cityscapes: false")
    file = instance_file(sample.label_file)
    values = torch.from_numpy(read_labels(file).astype("int32"))
    if values.shape != sample.segments.shape:
        raise DatasetError(
            f"instance file {escape(file)} is {values.shape[1]}x{values.shape[0]} pixels, its "
            f"label file {sample.segments.shape[1]}x{sample.segments.shape[0]}"
        )
    return values
