"""The keys of a recipe with their types and meanings, from the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from maskformer.config.schema import Config
from maskformer.system.documents import yaml_line

_TYPES = {
    "boolean": "true or false",
    "integer": "integer",
    "null": "null",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
_LARGEST_SHOWN = 1000
"""Larger limits only exclude absurd values and are not shown."""


@dataclass(frozen=True)
class RecipeKey:
    """A key of a recipe.

    Attributes:
        name: the dotted name, as in an override on the command line.
        type: a description of the type.
        value: the value in the recipe, or the default, as YAML; empty if there is none.
        meaning: one or two sentences.
    """

    name: str
    type: str
    value: str
    meaning: str


def recipe_keys(recipe: Config) -> list[RecipeKey]:
    """Return all keys of a recipe with its values; of a union, the keys of the chosen section."""
    return list(_keys(recipe, ""))


def section_keys(section: type[BaseModel]) -> list[RecipeKey]:
    """Return the keys of one section with their defaults, without its subsections."""
    types = _types(section)
    fields = section.model_fields
    return [
        RecipeKey(n, types[n], _default(fields[n].default), _one_line(fields[n].description))
        for n in types
    ]


def _keys(section: BaseModel, prefix: str) -> Iterator[RecipeKey]:
    types = _types(type(section))
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, f"{prefix}{name}.")
        elif name in values:  # not the other one of two exclusive keys
            text = _one_line(field.description)
            yield RecipeKey(prefix + name, types[name], yaml_line(values[name]), text)


def _types(section: type[BaseModel]) -> dict[str, str]:
    """Describe the types of all keys, except for subsections."""
    schema = section.model_json_schema()
    inner = schema.get("$defs", {})
    return {
        name: _type(node, inner)
        for name, node in schema["properties"].items()
        if not _is_section(node, inner)
    }


def _is_section(node: Mapping[str, Any], inner: Mapping[str, Any]) -> bool:
    choices = node.get("oneOf", [node])
    return all("properties" in _resolve(choice, inner) for choice in choices)


def _resolve(node: Mapping[str, Any], inner: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(node.get("allOf", ())) == 1:  # a reference with a default in pydantic before 2.9
        node = node["allOf"][0]
    return inner[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _type(node: Mapping[str, Any], inner: Mapping[str, Any]) -> str:
    """Describe the type of one key."""
    node = _resolve(node, inner)
    if "const" in node or "enum" in node:
        return " or ".join(map(yaml_line, node.get("enum", [node.get("const")])))
    for union in ("anyOf", "oneOf"):
        if union in node:
            return " or ".join(dict.fromkeys(_type(choice, inner) for choice in node[union]))
    kind = node.get("type")
    if kind == "array":
        entries = node.get("prefixItems")
        if entries:
            return f"list of {len(entries)}: {_type(entries[0], inner)}"
        return f"list of {_type(node.get('items', {}), inner)}"
    if kind == "object" and "properties" in node:
        return "section"
    if kind in ("integer", "number"):
        return _TYPES[kind] + _bounds(node)
    return "path" if node.get("format") == "path" else _TYPES.get(str(kind), "anything")


def _bounds(node: Mapping[str, Any]) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high = node.get("maximum")
    if low is not None and high is not None and high <= _LARGEST_SHOWN:
        return f" in {low:g}..{high:g}"
    text = ""
    if low is not None and low >= 0:
        text = f" ≥ {low:g}"
    elif above is not None and above >= 0:
        text = f" > {above:g}"
    if high is not None and high <= _LARGEST_SHOWN:
        text += f"{' and' if text else ''} ≤ {high:g}"
    return text


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    return yaml_line(list(value) if isinstance(value, tuple) else value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
