"""Everything that can go wrong for a reason that a person can do something about.

    MaskFormerError
    ├── ConfigError             (ValueError)         a recipe, an override or a configuration file
    ├── UsageError              (ValueError)         what was asked for and the model do not agree
    ├── OutputError             (ValueError)         results would take the place of other files
    ├── DatasetError            (ValueError)         a file or a folder of a data set
    │   └── LabelValueError                          a label file with values of no class
    ├── WeightsError            (ValueError)         a file of weights, or a format of them
    │   └── WeightsMismatchError                     weights that do not fit the model
    ├── HubError                (RuntimeError)       the Hugging Face hub
    ├── CheckpointError         (RuntimeError)       a checkpoint that cannot be written or read
    ├── StoppedError            (RuntimeError)       a signal ended the work
    │   └── TrainingStoppedError                     a run
    ├── TrainingDivergedError   (RuntimeError)       no finite gradient
    ├── WorkerError             (ChildProcessError)  a process that prepares batches
    ├── RunInUseError           (OSError)            another process works in the folder
    └── DiskFullError           (OSError)            too little room

The built-in class in brackets is a second base, so that `except ValueError` goes on to work. The
command line prints these errors, and the system's (`OSError`), in one line. Every other exception
is a mistake in a program, such as a tensor of another shape, or a bug.
"""

from __future__ import annotations


class MaskFormerError(Exception):
    """The base of all errors of this package."""


class ConfigError(MaskFormerError, ValueError):
    """A configuration that cannot be used; the message names each offending key."""


class UsageError(MaskFormerError, ValueError):
    """What was asked for does not go together, or not with the model or the data."""


class OutputError(MaskFormerError, ValueError):
    """Results would take the place of other files, or leave the output folder."""


class DatasetError(MaskFormerError, ValueError):
    """A file or a folder that cannot be used; the message names it, the cause and the remedy."""


class LabelValueError(DatasetError):
    """A label file with values that belong to no class.

    Attributes:
        file: the label file.
        values: pixels per offending value.
        found: every value of the file, in order.
    """

    def __init__(
        self,
        message: str,
        file: str = "",
        values: dict[int, int] | None = None,
        found: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.file = file
        self.values = values or {}
        self.found = found

    def __reduce__(self) -> tuple[type[LabelValueError], tuple[object, ...]]:
        """Keeps the attributes on the way out of a worker process."""
        return type(self), (str(self), self.file, self.values, self.found)


class WeightsError(MaskFormerError, ValueError):
    """Weights that are damaged, hold code, are of another model, or that a format cannot express.

    `WeightsMismatchError` is in `maskformer.weights.report`, beside the report that it carries.
    """


class HubError(MaskFormerError, RuntimeError):
    """The Hugging Face hub cannot be reached or has no such model."""


class CheckpointError(MaskFormerError, RuntimeError):
    """A checkpoint that could not be written or read; the message says what was kept."""


class StoppedError(MaskFormerError, RuntimeError):
    """SIGINT, SIGTERM, SIGHUP or SIGUSR1 ended the work; the message says how to go on."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class TrainingStoppedError(StoppedError):
    """A signal ended the run after a complete, saved step."""


class TrainingDivergedError(MaskFormerError, RuntimeError):
    """Many steps in a row had no finite gradient."""


class WorkerError(MaskFormerError, ChildProcessError):
    """A process that prepares batches died or gives none; the message says which, of what."""


class RunInUseError(MaskFormerError, OSError):
    """Another process works in the folder."""


class DiskFullError(MaskFormerError, OSError):
    """Too little room on a disk; the message states how much is needed and how much is free."""
