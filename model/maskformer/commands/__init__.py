"""What the commands of `maskformer.cli` do; each module is imported when its command runs."""
