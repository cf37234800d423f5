"""`maskformer info RECIPE`."""

from __future__ import annotations

from typing import get_args

from maskformer.config.choices import Format
from maskformer.config.load import merge_model_config
from maskformer.config.schema import Config
from maskformer.data import build_dataset
from maskformer.modeling.model_info import model_info
from maskformer.output.console import Progress, info_table
from maskformer.weights.open import why_not_written


def run(recipe: Config, size: tuple[int, int], title: str) -> None:
    """Prints what the recipe's model has and does at a size `(height, width)`, and the formats in
    which it can be written once it is trained.
    """
    model = recipe.model
    if model.num_classes is None:
        classes = len(build_dataset(recipe.data, "train").info.classes)
        model = merge_model_config(model, {"num_classes": classes})
    progress = Progress()
    progress.print(info_table(model_info(model, size), title))
    reasons = {form: why_not_written(form, model) for form in get_args(Format)}
    possible = ", ".join(form for form, reason in reasons.items() if reason is None)
    progress.print(f"maskformer convert can write this model as {possible}.")
    for form, reason in reasons.items():
        if reason is not None:
            progress.print(f"Not as {form}: {reason}.")
