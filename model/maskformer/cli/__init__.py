"""The command line: `maskformer init | data | train | evaluate | predict | info | …`."""

from maskformer.cli.app import app
from maskformer.cli.run import main

__all__ = ["app", "main"]
