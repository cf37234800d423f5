"""Patches and drop-in replacements for models of other projects."""
