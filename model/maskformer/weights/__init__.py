"""Read, rename and write checkpoints of all formats.

open              detects the format of a file or a folder; reads and writes all of them
hub               checks whether the Hugging Face hub can be reached
locate            finds the checkpoint of a run, a folder or a file
checkpoint        the class into which every format is read
native            our own folders
huggingface       folders of `transformers`
official          the authors' detectron2 checkpoints
backbone_weights  pretrained weights of a backbone only
preprocessor      the image processing that a model expects, in the format of `transformers`
files             tensors from `.safetensors`, `.pth`, `.bin`, `.pkl`, never running pickled code
safe_pickle       pickled files: their layouts, opcodes and the few names that they may contain
schemas           the parts of other configurations that are read
name_map          translation of entry names between formats, in both directions
report            which entries fit a model and which do not
backbone_sizes    backbone names and their sizes
"""

from maskformer.weights.checkpoint import Checkpoint
from maskformer.weights.open import open_checkpoint, write_checkpoint
from maskformer.weights.report import (
    LoadReport,
    WeightsMismatchError,
    warning_of_config,
    warning_of_values,
)

__all__ = [
    "Checkpoint",
    "LoadReport",
    "WeightsMismatchError",
    "open_checkpoint",
    "warning_of_config",
    "warning_of_values",
    "write_checkpoint",
]
