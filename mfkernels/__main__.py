"""``python -m mfkernels`` prints the backend of each operation; ``check`` tests them all here."""

from __future__ import annotations

import argparse
import signal
import sys

import mfkernels
from mfkernels.backend import BackendError
from mfkernels.selfcheck import command


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mfkernels",
        description="Print which native code is built, which backend runs each operation, and why "
        "an operation has no native kernel.",
        epilog="The environment variable MFKERNELS_BACKEND (auto, native, reference or verify) "
        "chooses the backend.",
    )
    parser.add_argument("--version", action="version", version=f"mfkernels {mfkernels.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = "check every operation on this machine against plain PyTorch in float64"
    command.add_arguments(commands.add_parser("check", help=about, description=about))
    arguments = parser.parse_args()
    try:
        if arguments.command == "check":
            sys.exit(command.run(arguments))
        print(mfkernels.explain())
    except BackendError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has read what it wants
    main()
