"""How a recipe is found, merged, checked and written.

A recipe is a YAML file. It may name a `base:` file, relative to itself, whose values it overrides.
Unknown keys and wrong types are refused with the nearest valid name, before anything else happens.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from maskformer.config.recipes import CONFIG_FOLDER, config_names
from maskformer.config.schema import Augmentation, Config, DataConfig, ModelConfig
from maskformer.config.synonyms import meant_key
from maskformer.errors import ConfigError
from maskformer.system.documents import (
    MAX_DEPTH,
    joined,
    one_line,
    parse_yaml,
    read_text,
    shown,
)
from maskformer.system.version import mark

_MAX_BASES = 16
_LISTED = 10
_MAX_NAME = 200
_VARIANTS: dict[str, type[BaseModel]] = {
    get_args(section.model_fields[tag].annotation)[0]: section
    for union, tag in ((DataConfig, "format"), (Augmentation, "kind"))
    for section in get_args(get_args(union)[0])
}
"""Sections by the tag that tells them apart, such as `folder`."""
_LISTING_CLASSES = ("format", "classes", "label_map")
"""Keys of `data` that make another list of classes."""


def load_config(
    name_or_file: str | Path, overrides: Iterable[str] = (), *, model: ModelConfig | None = None
) -> Config:
    """Reads, merges and checks a recipe.

    Args:
        name_or_file: a name out of `config_names()` or a YAML file, whose `base` is another file
            (relative to this one) or such a name, with or without `.yaml`.
        overrides: `key=value` pairs with dotted keys; values are YAML.
        model: the one that a recipe means which says nothing of its model but the number of
            classes, such as that of a checkpoint.

    Raises:
        ConfigError: no such recipe, unreadable YAML, unknown keys or wrong types.
    """
    values = _read(_find(str(name_or_file)), ())
    given = values.get("model") or {}
    if model is not None and isinstance(given, Mapping) and set(given) <= {"num_classes"}:
        values["model"] = {**model.model_dump(mode="json"), "num_classes": None, **given}
    return _with_overrides(values, overrides)


def override_config(config: Config, overrides: Iterable[str]) -> Config:
    """A recipe with other values; see `load_config`.

    Raises:
        ConfigError: unknown keys or wrong types.
    """
    return _with_overrides(config.model_dump(mode="json"), overrides)


def _with_overrides(values: dict[str, Any], overrides: Iterable[str]) -> Config:
    given: dict[str, Any] = {}
    for override in overrides:
        _merge(given, _parse_override(override))
    _overlay(values, given)
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Checks a nested mapping against the schema; see `load_config`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def parse_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Checks the `model` section alone; see `load_config`."""
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, ModelConfig)) from None


def merge_model_config(config: ModelConfig, overrides: Mapping[str, Any]) -> ModelConfig:
    """Replaces values of a model section; nested mappings are merged.

    Raises:
        ConfigError: unknown keys or wrong types.
    """
    values = config.model_dump()
    _merge(values, overrides)
    return parse_model_config(values)


def to_yaml(config: BaseModel) -> str:
    """The recipe as YAML that `load_config` reads back; a comment says which version wrote it."""
    return mark() + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def changed_values(before: BaseModel, after: BaseModel) -> dict[str, tuple[Any, Any]]:
    """What two recipes do not share, by dotted key: the old and the new value."""
    old, new = (flat_values(config) for config in (before, after))
    names = [*old, *(name for name in new if name not in old)]
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def flat_values(config: BaseModel) -> dict[str, Any]:
    """The values of a recipe by dotted key."""
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
    named = CONFIG_FOLDER / f"{name_or_file}.yaml"
    for file in (Path(name_or_file), named):
        if file.is_file():
            return file
    names = config_names()
    hint = _nearest(name_or_file, names) or f"; recipes: {', '.join(names)}"
    raise ConfigError(f"config: no recipe or file named '{one_line(name_or_file)}'{hint}")


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file over those of its base; `above` are the files that led here."""
    if file.resolve() in above:
        raise ConfigError(f"config: {file} inherits from itself")
    if len(above) >= _MAX_BASES:
        raise ConfigError(f"config: {file} is the base of more than {_MAX_BASES} recipes in a row")
    try:
        values = parse_yaml(read_text(file))
    except ConfigError as error:
        raise ConfigError(f"config: {file} is not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config: {file} must hold a mapping, got {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    merged = _read(_find_base(str(base), file), (*above, file.resolve()))
    _overlay(merged, values)
    return merged


def _find_base(base: str, child: Path) -> Path:
    """A file beside the one that names it, else a recipe of the package."""
    if len(base) > _MAX_NAME:
        raise ConfigError(f"config: {child} names a base of {len(base):,} characters")
    recipe = base.removesuffix(".yaml")
    beside, named = child.parent / base, CONFIG_FOLDER / f"{recipe}.yaml"
    for file in (beside, named):
        if file.is_file():
            return file
    names = config_names()
    hint = _nearest(recipe, names) or f"; recipes: {', '.join(names)}"
    raise ConfigError(
        f"config: {child} names the base '{base}', which is neither the file {beside} nor a recipe "
        f"of the package{hint}"
    )


def _overlay(recipe: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Puts values over a recipe's. Other classes take over nothing that is said per class, and a
    length in epochs replaces one in steps, or the other way round.
    """
    length = {"steps", "epochs"} & set(_section(values, "train"))
    if len(length) == 1:
        for key in {"steps", "epochs"} - length:
            _section(recipe, "train").pop(key, None)
    old, new = recipe.get("data"), values.get("data")
    if (
        isinstance(old, dict)
        and isinstance(new, Mapping)
        and any(new.get(key, old.get(key)) != old.get(key) for key in _LISTING_CLASSES)
    ):
        old.pop("colors", None)
        old.pop("things", None)
        if new.get("label_map"):  # not merged key by key: another map is another list of classes
            old.pop("label_map", None)
        if isinstance(recipe.get("model"), dict):
            recipe["model"].pop("num_classes", None)
    _merge(recipe, values)


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Overlays `values`; a section that changes its `format` or `kind` starts afresh."""
    for key, value in values.items():
        old = into.get(key)
        if not (isinstance(old, dict) and isinstance(value, Mapping)):
            into[key] = value
        elif any(tag in value and value[tag] != old.get(tag) for tag in ("format", "kind")):
            into[key] = dict(value)
        else:
            _merge(old, value)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"config: an override reads key=value, got '{override}'")
    try:
        value = parse_yaml(text)
    except ConfigError:
        value = text
    if key.count(".") > MAX_DEPTH:
        raise ConfigError(f"config: {shown(key)} has more than {MAX_DEPTH} parts")
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _explain(error: ValidationError, root: type[BaseModel] = Config) -> str:
    lines = []
    found = error.errors(include_url=False)
    for item in found[:_LISTED]:
        path, valid = _locate(item["loc"], root)
        name = one_line(".".join(path)) or "the recipe"
        if item["type"] == "extra_forbidden":
            hint = (
                _did_you_mean(meant_key(path))
                or _nearest(path[-1], valid)
                or f"; valid here: {', '.join(valid)}"
            )
            lines.append(f"{name}: unknown key{hint}")
        elif item["type"] == "missing":
            lines.append(f"{name}: missing")
        elif item["type"] == "value_error":  # a section's own check; its input would say too much
            lines.append(f"{name}: {item['ctx']['error']}")
        else:
            lines.append(f"{name}: {item['msg']}, got {shown(item['input'])}")
    return "config: " + joined(lines, len(found))


def _locate(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], list[str]]:
    """The dotted path as the user wrote it (union tags dropped) and the keys valid at its end."""
    path: list[str] = []
    section: type[BaseModel] | None = root
    for index, part in enumerate(location):
        if section is None and part in _VARIANTS:
            section = _VARIANTS[str(part)]
            continue
        if str(part).startswith("(") or part == "[key]":  # a form of a value, or the key of a map
            continue
        path.append(str(part))
        if index == len(location) - 1 or section is None:
            continue
        section = (
            _section_in(section.model_fields[str(part)].annotation)
            if part in section.model_fields
            else None
        )
    return path, list(section.model_fields) if section is not None else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a value is, or may be; None where there is none, or a choice of several."""
    kinds = [
        kind
        for form in (annotation, *get_args(annotation))
        for kind in (form, *get_args(form)[:1])
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    return kinds[0] if len({*kinds}) == 1 else None


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name[:100], list(names), n=1, cutoff=0.5)
    return _did_you_mean(close[0] if close else None)


def _did_you_mean(name: str | None) -> str:
    return f"; did you mean '{name}'?" if name else ""
