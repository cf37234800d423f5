"""Error messages for invalid recipes, with dotted keys and suggestions of valid ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from maskformer.config.schema import Augmentation, Config, DataConfig
from maskformer.config.synonyms import keys, keys_called, meant_key, meant_option
from maskformer.system.documents import joined, one_line, shown

_SPLIT = "(split)"
"""Part of the location of an error: the value was validated as a split, as it is not a number."""
_FEW = 3
_LISTED = 10
_VARIANTS: dict[str, type[BaseModel]] = {
    get_args(section.model_fields[tag].annotation)[0]: section
    for union, tag in ((DataConfig, "format"), (Augmentation, "kind"))
    for section in get_args(get_args(union)[0])
}
"""The sections of unions by their tag, such as `folder`."""


def explain(error: ValidationError, root: type[BaseModel] = Config) -> str:
    """Describe all errors in a recipe, or in one of its sections, by dotted key."""
    lines = []
    found = error.errors(include_url=False)
    for item in found[:_LISTED]:
        path, valid = _locate(item["loc"], root)
        name = one_line(".".join(path)) or "the recipe"
        if item["type"] == "extra_forbidden":
            lines.append(f"{name}: unknown key{_hint(path, valid, root)}")
        elif item["type"] == "missing":
            lines.append(f"{name}: missing")
        elif item["type"] in ("model_type", "model_attributes_type"):
            wanted = _explain_section(item["loc"], name, root)
            lines.append(f"{name}: {wanted}, got {shown(item['input'])}")
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            lines.append(f"{name}.{_explain_tag(item['ctx'], item['input'])}")
        elif item["type"] == "value_error":
            # A check of ours: its message suffices, and the input may be a whole section.
            lines.append(f"{name}: {item['ctx']['error']}")
        else:
            message = item["msg"].replace("tuple", "list").replace("Tuple", "List")  # as in YAML
            lines.append(f"{name}: {message}, got {shown(item['input'])}")
    return "config: " + joined(lines, len(found))


def _hint(path: Sequence[str], valid: Iterable[str], root: type[BaseModel]) -> str:
    """Suggest a valid key, or option of the command line, for an unknown key."""
    section, _, key_inside = path[-1].rpartition(".")
    if len(path) == 1 and section and path[-1] in keys_called(key_inside):  # as in an override
        return f"; in a file, {key_inside} is a key below {section.replace('.', ': ')}:"
    name, option = ".".join(path), meant_option(path[-1])
    elsewhere = [key for key in keys_called(path[-1]) if key != name]
    listed = f"valid here: {', '.join(valid)}"
    if name in {*keys(root)}:  # of another variant of a section
        kinds = [name for name, kind in _VARIANTS.items() if path[-1] in kind.model_fields]
        return f"; it belongs to {', '.join(kinds)}; {listed}"
    if (key := meant_key(path)) and key != name:  # `root` may be a section that lacks it
        return _did_you_mean(key)
    if option is not None:
        return f"; this is set on the command line: {option}"
    if len(path) == 1 and 0 < len(elsewhere) <= _FEW:
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    dotted = {key: ".".join([*path[:-1], key]) for key in valid}
    return _did_you_mean(dotted.get(_near(path[-1], valid))) or f"; {listed}"


def _explain_section(location: tuple[int | str, ...], name: str, root: type[BaseModel]) -> str:
    """Describe the expected section, for a value that is not a mapping."""
    section: type[BaseModel] | None = root
    for part in location:
        if section is None and part in _VARIANTS:
            section = _VARIANTS[str(part)]
        elif part != _SPLIT:
            field = section.model_fields.get(str(part)) if section is not None else None
            section = _section_in(field.annotation) if field is not None else None
    if section is None:
        return "expected a section"
    share = ", or a fraction such as 0.1" if _SPLIT in location else ""
    first = next(iter(section.model_fields))
    return f"expected a section with the keys {name}.{first} etc.{share}"


def _explain_tag(context: Mapping[str, Any], given: Any) -> str:
    """Describe the valid values of a key that selects a section of a union (`data.format`)."""
    key = context["discriminator"].strip("'")
    valid = [name for name, section in _VARIANTS.items() if key in section.model_fields]
    text = f"{key}: expected one of {', '.join(valid)}"
    if "tag" not in context:
        typo = _near(key, map(str, given)) if isinstance(given, Mapping) else ""
        return f"{text}; it is missing" + (f", and {typo} is an unknown key" if typo else "")
    return f"{text}, got {shown(context['tag'])}{nearest(context['tag'], valid)}"


def _locate(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Return the path as the user wrote it, without union tags, and the keys valid at its end."""
    path: list[str] = []
    section: type[BaseModel] | None = root
    for index, part in enumerate(location):
        if section is None and part in _VARIANTS:
            section = _VARIANTS[str(part)]
            continue
        if str(part).startswith("(") or part == "[key]":  # the tag of a union, or the key of a map
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
    """Return the section class in an annotation; None if there are none or several."""
    kinds = [
        kind
        for form in (annotation, *get_args(annotation))
        for kind in (form, *get_args(form)[:1])
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    return kinds[0] if len({*kinds}) == 1 else None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests the most similar name, or "" if none is similar."""
    return _did_you_mean(_near(name, names))


def _near(name: str, names: Iterable[str]) -> str:
    by_lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name[:100].lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else ""


def _did_you_mean(name: str | None) -> str:
    return f"; did you mean '{name}'?" if name else ""
