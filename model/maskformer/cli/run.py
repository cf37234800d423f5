"""Run a command and report its errors."""

from __future__ import annotations

import signal
import sys
import traceback
import warnings

from maskformer.cli.app import app
from maskformer.errors import MaskFormerError, StoppedError
from maskformer.system.openmp import limit_spinning
from maskformer.system.text import escape, make_streams_safe

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C outside of training."""
INTERNAL_ERROR = 70
"""Exit code after a bug: `EX_SOFTWARE` in sysexits.h."""


def main() -> None:
    """Run the command line.

    Errors that the user can fix are printed in one line, with exit code 1. Bugs are printed with a
    traceback, with exit code 70.
    """
    make_streams_safe()
    limit_spinning()
    # Pillow's limit; readers of images apply `data.max_pixels`, and name the file.
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    if "--traceback" not in sys.argv:
        warnings.formatwarning = _format_warning
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED and not isinstance(end.__context__, StoppedError):
            _print_error("interrupted; nothing was left to save")
        option = getattr(end.__context__, "option_name", None)
        if option is not None:
            _suggest_override(option)
        raise
    except StoppedError as stop:
        _print_error(str(stop))
        sys.exit(stop.exit_code)
    except Exception as error:
        if "--traceback" in sys.argv:
            raise
        reason = _reason(error)
        if reason is not None:
            _print_error(f"error: {reason}", style="red")
            sys.exit(1)
        _print_error(traceback.format_exc())
        _print_error(
            "internal error: this is a bug in maskformer or in a library that it uses, not a "
            "mistake in the command; please report it with the lines above",
            style="red",
        )
        sys.exit(INTERNAL_ERROR)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning without the line of the program that raised it, like those of commands."""
    return f"warning: {escape(message, newlines=True)}\n"


def _reason(error: Exception) -> str | None:
    """Return the message of an error that the user can fix, or None for a bug."""
    if isinstance(error, MaskFormerError | OSError) or _is_backend_error(error):
        return str(error)
    if isinstance(error, MemoryError | RuntimeError) and _out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return (
            "out of memory; lower train.batch_size (or raise train.accumulate), eval.batch_size, "
            f"the crop or the test size: {first_line}"
        )
    return None


def _suggest_override(option: str) -> None:
    """If an unknown option is a key of the recipe, or another spelling of an option, print the
    correct form.
    """
    from maskformer.config.options import overrides_for
    from maskformer.config.synonyms import meant_option

    rest = iter(sys.argv)
    given = next((text for text in rest if text.partition("=")[0] == option), "")
    value = given.partition("=")[2] or next(rest, "")
    overrides = overrides_for(option, "" if value.startswith("-") else value)
    if overrides:
        _print_error(
            f"{option} is a value of the recipe, which is written KEY=VALUE, without dashes: "
            f"{' or '.join(overrides)}"
        )
    elif (other := meant_option(option.lstrip("-"))) and other.split()[0] != option:
        _print_error(f"{option} is written {other}")


def _print_error(message: str, style: str | None = None) -> None:
    from rich.console import Console

    for argument in sys.argv:
        for path in (argument, argument.partition("=")[2]):
            if "\n" in path:  # escape line breaks of paths, but not those of the message
                message = message.replace(path, escape(path))
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    errors.print(escape(message, newlines=True), style=style)


def _is_backend_error(error: Exception) -> bool:
    from mfkernels.backend import BackendError

    return isinstance(error, BackendError)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError):
        return True
    import torch

    # On a CPU, PyTorch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
