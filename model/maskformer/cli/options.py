"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from maskformer.config.choices import Backend
from maskformer.config.recipes import config_names


class Command(TyperCommand):
    """A command that rejects empty arguments, which unset variables of the shell cause."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=[*args])
        for parameter in self.get_params(ctx):
            value = given.get(str(parameter.name))
            if "" in (value if isinstance(value, list | tuple) else [value]):
                raise typer.BadParameter("it is empty", ctx, cast("Any", parameter))
        return super().parse_args(ctx, args)


def complete_recipe(incomplete: str) -> list[str]:
    """Complete names of recipes. If there are none, the shell completes file names."""
    return [name for name in config_names() if name.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        help="A recipe's name (see `maskformer info`) or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that override the recipe's."),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        help="What computes the operations of mfkernels: kernels, or plain PyTorch if there are "
        "none or they fail (auto); kernels or an error (native); plain PyTorch (reference); "
        "kernels compared with plain PyTorch (verify)."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: the GPU, if there is one.")
]
TtaOption = Annotated[
    bool,
    typer.Option("--tta", help="Average class scores over sizes and mirror images (eval.tta)."),
]
CheckpointOption = Annotated[
    Path,
    typer.Option(
        "--checkpoint",
        help="A run folder (its best checkpoint), a checkpoint, a model, or a hub id.",
    ),
]
