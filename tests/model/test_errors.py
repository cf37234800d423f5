"""The tree of errors: one base, drawn in the docstring, and the built-in bases that users catch."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil

import pytest

import maskformer
from maskformer import errors
from maskformer.errors import MaskFormerError
from maskformer.weights import WeightsMismatchError

# What `except ValueError` and the like caught in version 0.1.0.
BUILT_IN = {
    "ConfigError": ValueError,
    "DatasetError": ValueError,
    "LabelValueError": ValueError,
    "WeightsMismatchError": ValueError,
    "HubError": RuntimeError,
    "CheckpointError": RuntimeError,
    "StoppedError": RuntimeError,
    "TrainingStoppedError": RuntimeError,
    "TrainingDivergedError": RuntimeError,
    "WorkerError": ChildProcessError,
    "RunInUseError": OSError,
    "DiskFullError": OSError,
}


def all_errors() -> dict[str, type[Exception]]:
    """Every public error class that a module of the package defines."""
    found = {}
    for module in pkgutil.walk_packages(maskformer.__path__, "maskformer."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            is_error = inspect.isclass(value) and issubclass(value, Exception)
            if is_error and value.__module__.startswith("maskformer.") and name.endswith("Error"):
                found[name] = value
    for inner in ("UnsafePickleError", "ExtraMissingError", "PixelLimitError"):
        del found[inner]  # never leaves the readers of pickles and of images
    return found


def test_all_errors_have_one_base_and_are_drawn() -> None:
    drawing = (errors.__doc__ or "").split("The built-in class")[0]
    for name, error in all_errors().items():
        assert issubclass(error, MaskFormerError), name
        assert name in drawing, name


@pytest.mark.parametrize(("name", "built_in"), BUILT_IN.items())
def test_built_in_classes_still_catch_them(name: str, built_in: type[Exception]) -> None:
    assert issubclass(all_errors()[name], built_in)


def test_public_errors_belong_to_the_tree() -> None:
    assert issubclass(maskformer.ConfigError, maskformer.MaskFormerError)
    assert issubclass(maskformer.WeightsMismatchError, maskformer.MaskFormerError)
    assert WeightsMismatchError is maskformer.WeightsMismatchError


def test_a_label_error_comes_whole_out_of_a_worker() -> None:
    error = errors.LabelValueError("wrong", "a.png", {7: 3}, (0, 7))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.file, copy.values, copy.found) == ("wrong", "a.png", {7: 3}, (0, 7))
