"""JSON and YAML that others wrote: bounded in length and depth, checked by a schema.

Every reader of a configuration goes through here, and fails with `ConfigError` in one line.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from maskformer.errors import ConfigError
from maskformer.system.reading import decode_json, read_regular

MAX_BYTES = 16 << 20
"""Of a file: the class names and entry names of the largest models take less than one."""
MAX_DEPTH = 32
MAX_NODES = 20_000
"""Values in a YAML document, those behind its aliases counted each time."""
_SHOWN_ERRORS = 10
_MERGE = "tag:yaml.org,2002:merge"
"""Of `<<`, which brings in the keys of other mappings."""

_Model = TypeVar("_Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice: the first of its values would get lost."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


def yaml_line(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=1 << 16, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def read_text(file: Path) -> str:
    """A file of UTF-8.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: it is too long, no regular file, or no text, or may not be read.
    """
    try:
        return read_regular(file, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {one_line(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is damaged: {error}") from None


def read_mapping(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: it is damaged, too long or too deep, or holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {file.name}")
    text = read_text(file)
    try:
        values = parse_json(text)
    except ConfigError as error:
        raise ConfigError(f"{file} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping, got {type(values).__name__}")
    return values


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ConfigError: it is no JSON, or nested too deep.
    """
    try:
        return decode_json(text, MAX_DEPTH)
    except ValueError as error:
        raise ConfigError(one_line(error)) from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: it is no YAML, has a key twice, is nested too deep, or grows too large by its
            aliases.
    """
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers may be none
        raise ConfigError(one_line(error)) from None


def check(schema: type[_Model], values: Any) -> _Model:
    """Values in the form of a schema.

    Raises:
        ConfigError: a wrong type or a value out of bounds; each key is named.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """What a schema found, in one line."""
    found = error.errors(include_url=False)
    lines = [
        f"{'.'.join(map(_short, item['loc'])) or 'it'}: {item['msg']}, got {shown(item['input'])}"
        for item in found[:_SHOWN_ERRORS]
    ]
    return joined(lines, len(found))


def joined(lines: list[str], count: int) -> str:
    """Several faults in one line; `count` may be more than are listed."""
    more = [f"and {count - len(lines)} more"] if count > len(lines) else []
    return "; ".join(lines + more)


def shown(value: Any) -> str:
    """A value as Python writes it, in few characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    return one_line(short.repr(value))


def one_line(error: object) -> str:
    """A message without line ends, in at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _short(part: object) -> str:
    return str(part)[:60]


def _too_deep() -> str:
    return f"it nests values more than {MAX_DEPTH} deep"


def _check_events(text: str) -> None:
    """Follows the document without building it, so that neither depth nor aliases cost memory."""
    counts = [0]  # of the nodes that are open, values in each so far
    anchors: list[str | None] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size = counts.pop()
            counts[-1] += size
            if anchor := anchors.pop():
                sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise ConfigError(f"*{_short(event.anchor)} stands inside of itself")
            counts[-1] += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
        if len(counts) > MAX_DEPTH:
            raise ConfigError(_too_deep())
        if sum(counts) > MAX_NODES:
            raise ConfigError(f"it holds more than {MAX_NODES:,} values")
