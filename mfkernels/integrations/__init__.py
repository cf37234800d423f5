"""Drop-in patches and replacements for other people's models."""
