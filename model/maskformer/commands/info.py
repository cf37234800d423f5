"""`maskformer info RECIPE`."""

from __future__ import annotations

from maskformer.config.load import merge_model_config
from maskformer.config.schema import Config
from maskformer.data import build_dataset
from maskformer.modeling.model_info import model_info
from maskformer.output.console import Progress, info_table


def run(recipe: Config, size: tuple[int, int], title: str) -> None:
    """Prints what the recipe's model has and does at a size `(height, width)`."""
    model = recipe.model
    if model.num_classes is None:
        classes = len(build_dataset(recipe.data, "train").info.classes)
        model = merge_model_config(model, {"num_classes": classes})
    Progress().print(info_table(model_info(model, size), title))
