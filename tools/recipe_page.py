"""Print docs/recipe.md from the schema; `make docs` writes it, a test checks it is up to date."""

from __future__ import annotations

from collections.abc import Iterator

from maskformer.config import schema
from maskformer.config.keys import section_keys
from maskformer.config.recipes import config_names

SECTIONS = {
    "model": schema.ModelConfig,
    "model.backbone": schema.BackboneConfig,
    "model.pixel_decoder": schema.PixelDecoderConfig,
    "model.decoder": schema.DecoderConfig,
    "criterion": schema.CriterionConfig,
    "data, format: folder": schema.FolderConfig,
    "data.train and data.val, format: folder": schema.FolderSplit,
    "data, format: coco_panoptic": schema.CocoPanopticConfig,
    "data.train and data.val, format: coco_panoptic": schema.CocoPanopticSplit,
    "data, format: coco_instances": schema.CocoInstancesConfig,
    "data.train and data.val, format: coco_instances": schema.CocoInstancesSplit,
    "data, format: huggingface": schema.HuggingFaceConfig,
    "data, format: webdataset": schema.WebDatasetConfig,
    "data, format: shapes": schema.ShapesConfig,
    "data.augmentation, kind: semantic": schema.SemanticAugmentation,
    "data.augmentation, kind: panoptic": schema.PanopticAugmentation,
    "train": schema.TrainConfig,
    "eval": schema.EvalConfig,
    "eval.tta": schema.ViewsConfig,
    "predict": schema.PredictConfig,
}
HEAD = """# The keys of a recipe

A recipe is a YAML file with the sections below. `base: NAME` starts from another recipe, whose
values the file overrides; `KEY=VALUE` on the command line also overrides values.
`maskformer info RECIPE --keys` shows these keys with the values of a recipe, and `--yaml` the whole
recipe. Keys without a default must be given. `make docs` generates this page.
"""


def page() -> Iterator[str]:
    yield HEAD
    yield f"Recipes of the package: {', '.join(f'`{name}`' for name in config_names())}.\n"
    for title, section in SECTIONS.items():
        yield f"## {title}\n"
        yield " ".join((section.__doc__ or "").split()) + "\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for key in section_keys(section):
            default = f"`{key.value}`" if key.value else ""
            yield f"| `{key.name}` | {key.type} | {default} | {key.meaning} |"
        yield ""


if __name__ == "__main__":
    print("\n".join(page()).rstrip())
