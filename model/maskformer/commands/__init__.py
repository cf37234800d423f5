"""The commands of `maskformer.cli`; each module is imported when its command runs."""
