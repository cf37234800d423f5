"""Values of options that the command line and the library share."""

from __future__ import annotations

from typing import Literal

Mode = Literal["semantic", "panoptic", "instance"]
"""The kinds of results of `predict`."""

Format = Literal["native", "hf", "official"]
"""Formats of a checkpoint: our own, that of `transformers`, the authors'."""

ExportedOutputs = Literal["classes", "queries"]
"""Outputs of an exported network: the class of each pixel, or logits of classes and masks."""

Backend = Literal["reference", "native", "auto", "verify"]
"""The same as `mfkernels.backend.Backend`, defined here to avoid importing PyTorch."""

PreparedSet = Literal["ade20k_full", "ade20k_panoptic"]
"""Data sets that `data prepare` converts."""

InferencePrecision = Literal["fp32", "bf16", "auto"]
"""Precision of the network in `evaluate` and `predict`; `auto` is bf16 if the machine supports it.
"""
