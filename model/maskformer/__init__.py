"""MaskFormer: mask classification for semantic and panoptic segmentation (NeurIPS 2021)."""
