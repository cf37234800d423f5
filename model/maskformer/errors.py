"""The errors that the user can do something about.

    MaskFormerError
    ├── ConfigError             (ValueError)         a recipe, an override or a configuration file
    ├── UsageError              (ValueError)         arguments that do not fit together
    ├── OutputError             (ValueError)         an output that would replace other files
    ├── DatasetError            (ValueError)         a file or a folder of a data set
    │   └── LabelValueError                          a label file with values outside the classes
    ├── WeightsError            (ValueError)         a weight file, or its format
    │   └── WeightsMismatchError                     weights that do not fit the model
    ├── HubError                (RuntimeError)       the Hugging Face hub
    ├── CheckpointError         (RuntimeError)       a checkpoint that cannot be written or read
    ├── StoppedError            (RuntimeError)       a signal ended the work
    │   └── TrainingStoppedError                     a signal ended a training run
    ├── TrainingDivergedError   (RuntimeError)       no finite gradient
    ├── WorkerError             (ChildProcessError)  a data loader worker that died or hangs
    ├── RunInUseError           (OSError)            another process is using the folder
    └── DiskFullError           (OSError)            too little disk space

The built-in class in brackets is a second base class, so that `except ValueError` catches them too.
The command line prints these errors, and those of the operating system (`OSError`), in one line.
Every other exception is a mistake in the calling program, such as a tensor of the wrong shape, or a
bug.
"""

from __future__ import annotations


class MaskFormerError(Exception):
    """The base of all errors of this package."""


class ConfigError(MaskFormerError, ValueError):
    """A configuration is invalid; the message names each wrong key."""


class UsageError(MaskFormerError, ValueError):
    """Arguments do not go together, or do not suit the model or the data."""


class OutputError(MaskFormerError, ValueError):
    """Results would overwrite other files, or lie outside the output folder."""


class DatasetError(MaskFormerError, ValueError):
    """A file or folder of a data set cannot be used; the message says why and what to do."""


class LabelValueError(DatasetError):
    """A label file with values that belong to no class.

    Attributes:
        file: the label file.
        values: the number of pixels of each value without a class.
        found: all values in the file, in ascending order.
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
        """Keep the attributes when the error leaves a worker process."""
        return type(self), (str(self), self.file, self.values, self.found)


class WeightsError(MaskFormerError, ValueError):
    """Weights are damaged, hold code, belong to another model, or do not fit a file format.

    `WeightsMismatchError` is in `maskformer.weights.report`, together with its report.
    """


class HubError(MaskFormerError, RuntimeError):
    """The Hugging Face hub cannot be reached or has no such model."""


class CheckpointError(MaskFormerError, RuntimeError):
    """A checkpoint could not be written or read; the message says what was kept."""


class StoppedError(MaskFormerError, RuntimeError):
    """SIGINT, SIGTERM, SIGHUP or SIGUSR1 ended the work; the message says how to continue."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class TrainingStoppedError(StoppedError):
    """A signal ended the run after a complete, saved step."""


class TrainingDivergedError(MaskFormerError, RuntimeError):
    """Many steps in a row had no finite gradient."""


class WorkerError(MaskFormerError, ChildProcessError):
    """A process that prepares batches died or hangs; the message says which, and why if known."""


class RunInUseError(MaskFormerError, OSError):
    """Another process is using the folder."""


class DiskFullError(MaskFormerError, OSError):
    """Too little disk space; the message states how much is needed and how much is free."""
