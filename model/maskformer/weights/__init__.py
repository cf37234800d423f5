"""Checkpoints of others: reading, renaming and writing them.

open              `open_checkpoint` picks the format of a file or a folder
locate            where the checkpoint of a run, a folder or a file is
files             tensors out of `.safetensors`, `.pth`, `.bin`, `.pkl`, never running pickled code
safe_pickle       pickled files: their layouts, opcodes and the few names that may stand in them
schemas           the parts of other configurations that are read
name_map          the rule that turns one model's entry names into another's, in both directions
report            what fitted and what did not
backbone_sizes    backbone names and their sizes
official          the authors' detectron2 checkpoints
huggingface       folders of `transformers`
"""

from maskformer.weights.open import Checkpoint, open_checkpoint
from maskformer.weights.report import LoadReport, WeightsMismatchError

__all__ = ["Checkpoint", "LoadReport", "WeightsMismatchError", "open_checkpoint"]
