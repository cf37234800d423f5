"""`maskformer info RECIPE`."""

from __future__ import annotations

from typing import get_args

from maskformer.config.choices import Format
from maskformer.config.load import merge_model_config
from maskformer.config.schema import Config
from maskformer.data import build_dataset
from maskformer.modeling.model_info import model_info
from maskformer.output.console import Progress, info_table
from maskformer.weights.open import why_not_expressible


def run(recipe: Config, size: tuple[int, int], title: str) -> None:
    """Print the parameters and multiply-adds of a recipe's model for an image of size
    `(height, width)`, and the formats in which the trained model can be written.
    """
    model = recipe.model
    if model.num_classes is None:
        classes = len(build_dataset(recipe.data, "train").info.classes)
        model = merge_model_config(model, {"num_classes": classes})
    progress = Progress()
    progress.print(info_table(model_info(model, size), title))
    reasons = {form: why_not_expressible(form, model) for form in get_args(Format)}
    possible = ", ".join(form for form, reason in reasons.items() if reason is None)
    progress.print(f"maskformer convert can write this model as {possible}.")
    for form, reason in reasons.items():
        if reason is not None:
            progress.print(f"Not as {form}: {reason}.")
