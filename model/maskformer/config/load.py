"""Finding, merging, validating and writing recipes.

A recipe is a YAML file. It may name a `base:` file, relative to itself, whose values it overrides.
Unknown keys and wrong types raise an error that suggests the most similar valid name, before
anything else happens.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from maskformer.config.explain import explain, nearest
from maskformer.config.recipes import CONFIG_FOLDER, base_names, config_names
from maskformer.config.schema import BackboneConfig, Config, ModelConfig
from maskformer.errors import ConfigError
from maskformer.system.documents import (
    MAX_DEPTH,
    one_line,
    parse_yaml,
    read_text,
    shown,
)
from maskformer.system.version import mark

LIST = "; maskformer info lists the recipes"
_MAX_BASES = 16
_MAX_NAME = 200
_TAGS = {"format": None, "kind": "semantic"}
"""Keys that select a section of a union, with their defaults."""
_EITHER_OR = (("train", {"steps", "epochs"}), ("data", {"value_range", "percentiles"}))
_LISTING_CLASSES = ("format", "classes", "label_map")
"""Keys of `data` that change the list of classes."""


def load_config(
    name_or_file: str | Path, overrides: Iterable[str] = (), *, model: ModelConfig | None = None
) -> Config:
    """Read, merge and check a recipe.

    Args:
        name_or_file: a name from `config_names()`, or a YAML file. The `base` of a file is another
            file (relative to this one) or a name from `config_names()`, with or without `.yaml`.
        overrides: `key=value` pairs with dotted keys, such as `"train.lr=1e-4"`; values are YAML.
        model: the model to use if the recipe says nothing about its model but the number of
            classes, such as that of a checkpoint.

    Raises:
        ConfigError: the recipe does not exist, is not readable YAML, or has unknown keys or wrong
            types.
        TypeError: `name_or_file` is neither text nor a path.
    """
    if not isinstance(name_or_file, str | os.PathLike):
        raise TypeError(f"name_or_file must be a recipe's name or file, got {name_or_file!r:.100}")
    values = _read(_find(os.fspath(name_or_file)), ())
    given = values.get("model") or {}
    if model is not None and isinstance(given, Mapping) and set(given) <= {"num_classes"}:
        values["model"] = {**model.model_dump(mode="json"), "num_classes": None, **given}
    return _with_overrides(values, overrides)


def override_config(config: Config, overrides: Iterable[str]) -> Config:
    """Return a copy of a recipe with other values; see `load_config`.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    return _with_overrides(config.model_dump(mode="json"), overrides)


def override_keys(overrides: Iterable[str]) -> list[str]:
    """Return the dotted keys that `key=value` pairs set, including those in mappings as values.

    Raises:
        ConfigError: an override is not a `key=value` pair.
    """
    return [key for each in _listed(overrides) for key in _flatten(_parse_override(each))]


def _listed(overrides: Iterable[str]) -> Iterable[str]:
    if isinstance(overrides, str | bytes):
        raise ConfigError(
            f"config: overrides must be a list of key=value texts, got the text {shown(overrides)}"
        )
    return overrides


def _with_overrides(values: dict[str, Any], overrides: Iterable[str]) -> Config:
    given: dict[str, Any] = {}
    for override in _listed(overrides):
        # Overrides may come in any order: data.format, say, after the keys of that format.
        _merge(given, _parse_override(override), replace=False)
    _overlay(values, given)
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Validate a nested mapping with the schema; see `load_config`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def parse_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Validate a `model` section; see `load_config`."""
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, ModelConfig)) from None


def merge_model_config(config: ModelConfig, overrides: Mapping[str, Any]) -> ModelConfig:
    """Replace values of a model section. Nested mappings are merged.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    values = config.model_dump()
    _merge(values, overrides)
    return parse_model_config(values)


def to_yaml(config: BaseModel) -> str:
    """Return the recipe as YAML that `load_config` reads, with a comment on the version."""
    return mark() + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def changed_values(before: BaseModel, after: BaseModel) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each dotted key in which two recipes differ."""
    old, new = (flat_values(config) for config in (before, after))
    names = [*old, *(name for name in new if name not in old)]
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def flat_values(config: BaseModel) -> dict[str, Any]:
    """Return the values of a recipe by dotted key."""
    return _flatten(config.model_dump(mode="json"))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def _find(name_or_file: str) -> Path:
    if not name_or_file:
        raise ConfigError(f"config: expected a recipe's name or file, got an empty text{LIST}")
    named = CONFIG_FOLDER / f"{name_or_file}.yaml"
    for file in (Path(name_or_file), named):
        if file.is_file():
            return file
    if Path(name_or_file).is_dir():
        name = one_line(name_or_file)
        raise ConfigError(
            f"config: {name} is a folder, expected a recipe's name or file; "
            f"maskformer init {shlex.quote(name)} writes a recipe for the data in it"
        )
    folder = Path(name_or_file).parent
    files = [str(file) for file in folder.glob("*.y*ml")] if folder.is_dir() else []
    beside = [file for file in files if Path(file).with_suffix("") == Path(name_or_file)]
    if Path(name_or_file).suffix in (".yaml", ".yml"):  # a file was meant, not a recipe's name
        hint = nearest(name_or_file, files)
        hint = hint or "; maskformer init FOLDER writes one for your images and labels"
    elif beside:
        hint = f"; did you mean '{one_line(beside[0])}'?"
    else:
        hint = nearest(name_or_file, config_names()) or LIST
    raise ConfigError(f"config: no recipe or file named '{one_line(name_or_file)}'{hint}")


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read the values of a file, merged into those of its base. `above` are the files whose bases
    led to this one.
    """
    if file.resolve() in above:
        raise ConfigError(f"config: {file} inherits from itself")
    if len(above) >= _MAX_BASES:
        raise ConfigError(f"config: {file} is the base of more than {_MAX_BASES} recipes in a row")
    try:
        text = read_text(file)
    except ConfigError as error:
        raise ConfigError(f"config: {error}") from None
    try:
        values = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"config: {file} is not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        got = "an empty file" if values is None else shown(values)
        raise ConfigError(f"config: {file} must hold sections such as data: and train:, got {got}")
    base = values.pop("base", None)
    if base is None:
        return values
    merged = _read(_find_base(str(base), file), (*above, file.resolve()))
    _overlay(merged, values)
    return merged


def _find_base(base: str, child: Path) -> Path:
    """Find a base: a file relative to the one that names it, or a recipe of the package."""
    if len(base) > _MAX_NAME:
        raise ConfigError(f"config: {child} names a base of {len(base):,} characters")
    recipe = base.removesuffix(".yaml")
    beside, named = child.parent / base, CONFIG_FOLDER / f"{recipe}.yaml"
    for file in (beside, named):
        if file.is_file():
            return file
    hint = nearest(recipe, base_names()) or LIST
    raise ConfigError(
        f"config: {child} names the base '{base}', which is neither the file {beside} nor a recipe "
        f"of the package{hint}"
    )


def _overlay(recipe: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Merge values into a recipe. If they set one of two exclusive keys, the other one is removed.
    If they change the classes, settings for the old classes are removed.
    """
    for name, exclusive in _EITHER_OR:
        if len(given := exclusive & set(_section(values, name))) == 1:
            for key in exclusive - given:
                _section(recipe, name).pop(key, None)
    old, new = recipe.get("data"), values.get("data")
    if isinstance(old, dict) and isinstance(new, Mapping) and _drop_old_classes(old, new):
        _section(recipe, "model").pop("num_classes", None)
    _merge(recipe, values)


def _drop_old_classes(old: dict[str, Any], new: Mapping[str, Any]) -> bool:
    """If the new values change the classes, remove the settings in a base's `data` that belong to
    its classes. Return whether they do.
    """
    if all(new.get(key, old.get(key)) == old.get(key) for key in _LISTING_CLASSES):
        return False
    old.pop("colors", None)
    old.pop("things", None)
    label_map = new.get("label_map")
    if isinstance(label_map, Mapping):
        # The new map replaces the old one instead of being merged, as it defines other classes.
        mapped_before = old.pop("label_map", None) is not None
        if "classes" not in new and _names_others(label_map, old.get("classes")):
            classes = old.pop("classes")
            if not mapped_before:  # the old classes are the names of the raw values
                old.setdefault("label_names", classes)
    elif new.get("classes", old.get("classes")) != old.get("classes"):
        for key in ("ignore", "label_offset"):  # refer to the raw values of the old classes
            old.pop(key, None)
    return True


def _names_others(label_map: Mapping[Any, Any], classes: Any) -> bool:
    """Whether the class names in a label map differ from those in a list of classes."""
    wanted = {name for name in label_map.values() if isinstance(name, str) and name != "ignore"}
    return bool(wanted and classes) and not (isinstance(classes, list) and wanted == {*classes})


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _merge(into: dict[str, Any], values: Mapping[str, Any], *, replace: bool = True) -> None:
    """Merge `values` into a mapping. With `replace`, a section whose `format` or `kind` changes is
    replaced, and another backbone starts without the sizes of the one before.
    """
    for key, value in values.items():
        old = into.get(key)
        if not (isinstance(old, dict) and isinstance(value, Mapping)):
            into[key] = value
        elif replace and _changes_tag(old, value):
            into[key] = dict(value)
        else:
            if replace and key == "backbone" and _names_other_model(old, value):
                old.pop("options", None)
            _merge(old, value, replace=replace)


def _changes_tag(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(tag in new and new[tag] != old.get(tag, usual) for tag, usual in _TAGS.items())


def _names_other_model(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a backbone becomes another timm model. What follows the dot only names weights."""
    usual = BackboneConfig.model_fields["name"].default
    before = str(old.get("name", usual)).partition(".")[0]
    return str(new.get("name", before)).partition(".")[0] != before


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"config: an override must be key=value, got '{override}'")
    try:
        value = parse_yaml(text)
    except ConfigError:
        value = text
    if key.count(".") > MAX_DEPTH:
        raise ConfigError(f"config: {shown(key)} has more than {MAX_DEPTH} parts")
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
