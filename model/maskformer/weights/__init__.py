"""Checkpoints of others: reading, renaming and writing them.

files        tensors out of `.safetensors`, `.pth`, `.bin`, `.pkl`, never running pickled code
unpickle     the layouts of pickled files: plain, legacy, zip
machine      the opcodes of a pickle on plain data, with limits
rebuild      what the names in a pickle stand for: arrays, tensors, storages
schemas      the parts of other configurations that are read
names        the rule that turns one model's entry names into another's, in both directions
report       what fitted and what did not
sizes        backbone names and their sizes
official     the authors' detectron2 checkpoints
huggingface  folders of `transformers`
checkpoint   one door to all of them
"""

from maskformer.errors import HubError
from maskformer.weights.checkpoint import Checkpoint, open_checkpoint
from maskformer.weights.report import LoadReport, WeightsMismatchError

__all__ = ["Checkpoint", "HubError", "LoadReport", "WeightsMismatchError", "open_checkpoint"]
