"""Image files of several formats, depths and numbers of bands, as `[C, H, W]` uint8."""
