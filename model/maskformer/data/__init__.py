"""Data sets, augmentation and batches."""

from typing import TYPE_CHECKING

from maskformer.lazy import imported_on_use

if TYPE_CHECKING:
    from maskformer.data.batches import Batch, EvalBatch, Normalize
    from maskformer.data.datasets.build import build_dataset
    from maskformer.data.datasets.coco_instances import CocoInstances
    from maskformer.data.datasets.coco_panoptic import CocoPanoptic
    from maskformer.data.datasets.folder import Folder
    from maskformer.data.datasets.huggingface import HuggingFace
    from maskformer.data.datasets.shapes import Shapes
    from maskformer.data.datasets.webdataset import WebDataset
    from maskformer.data.inspection.checks import check_dataset, check_splits
    from maskformer.data.loaders import EvalLoader, TrainLoader
    from maskformer.data.sample import Dataset, DatasetInfo, Sample
    from maskformer.data.transforms import EvalTransform, TrainTransform
    from maskformer.errors import DatasetError, LabelValueError, WorkerError

__all__ = [
    "Batch",
    "CocoInstances",
    "CocoPanoptic",
    "Dataset",
    "DatasetError",
    "DatasetInfo",
    "EvalBatch",
    "EvalLoader",
    "EvalTransform",
    "Folder",
    "HuggingFace",
    "LabelValueError",
    "Normalize",
    "Sample",
    "Shapes",
    "TrainLoader",
    "TrainTransform",
    "WebDataset",
    "WorkerError",
    "build_dataset",
    "check_dataset",
    "check_splits",
]

if not TYPE_CHECKING:
    # Code that only reads labels, such as `maskformer init`, does not import torchvision.
    __getattr__ = imported_on_use(
        __name__,
        {
            "data.batches": ("Batch", "EvalBatch", "Normalize"),
            "data.datasets.build": ("build_dataset",),
            "data.datasets.coco_instances": ("CocoInstances",),
            "data.datasets.coco_panoptic": ("CocoPanoptic",),
            "data.datasets.folder": ("Folder",),
            "data.datasets.huggingface": ("HuggingFace",),
            "data.datasets.shapes": ("Shapes",),
            "data.datasets.webdataset": ("WebDataset",),
            "data.inspection.checks": ("check_dataset", "check_splits"),
            "data.loaders": ("EvalLoader", "TrainLoader"),
            "data.sample": ("Dataset", "DatasetInfo", "Sample"),
            "data.transforms": ("EvalTransform", "TrainTransform"),
            "errors": ("DatasetError", "LabelValueError", "WorkerError"),
        },
    )
