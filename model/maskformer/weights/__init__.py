"""Checkpoints of all formats: reading, renaming and writing them.

open              which format a file or a folder has; reads and writes all of them
hub               whether the Hugging Face hub can be reached
locate            where the checkpoint of a run, a folder or a file is
checkpoint        what every format is read into
native            our own folders
huggingface       folders of `transformers`
official          the authors' detectron2 checkpoints
backbone_weights  weights of a backbone alone
preprocessor      what images a model expects, as `transformers` writes it
files             tensors out of `.safetensors`, `.pth`, `.bin`, `.pkl`, never running pickled code
safe_pickle       pickled files: their layouts, opcodes and the few names that may stand in them
schemas           the parts of other configurations that are read
name_map          the rule that turns one model's entry names into another's, in both directions
report            what fitted and what did not
backbone_sizes    backbone names and their sizes
"""

from maskformer.weights.checkpoint import Checkpoint
from maskformer.weights.open import open_checkpoint, write_checkpoint
from maskformer.weights.report import LoadReport, WeightsMismatchError

__all__ = [
    "Checkpoint",
    "LoadReport",
    "WeightsMismatchError",
    "open_checkpoint",
    "write_checkpoint",
]
