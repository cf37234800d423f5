"""Reading of untrusted JSON and YAML with limits of length and depth, and validation by schemas.

All configuration files are read through this module, which raises a one-line `ConfigError`.
"""

from __future__ import annotations

import reprlib
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from maskformer.errors import ConfigError
from maskformer.system.reading import decode_json, read_regular

MAX_BYTES = 16 << 20
"""Limit of a file. The class names and entry names of the largest models take less than 1 MB."""
MAX_DEPTH = 32
MAX_NODES = 20_000
"""Limit of the values in a YAML document, in which those of aliases count each time."""
_SHOWN_ERRORS = 10
_MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`, which includes the keys of other mappings."""

_Model = TypeVar("_Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML would ignore all but the last.

    As in YAML 1.2, `010` is decimal instead of octal, and `1:30` is text instead of a number to
    base 60.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Name a value that does not fit its tag, such as `!!int abc`, for which PyYAML raises
        errors of all kinds.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            reason = f" ({error})" if isinstance(error, ValueError) else ""
            problem = f"{shown(node.value)} is not a valid {kind}{reason}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_yaml_int(self, node: Any) -> Any:
        text = self.construct_scalar(node)
        if ":" in text:
            return text
        digits = text.replace("_", "")
        return int(digits) if digits.lstrip("+-").isdecimal() else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> Any:
        text = self.construct_scalar(node)
        return text if ":" in text else super().construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def yaml_line(value: Any) -> str:
    """Format a value as YAML on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=1 << 16, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def read_text(file: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: it is too long, not a regular file, not text, or cannot be read.
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
    """Read a JSON file that contains a mapping.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: it is damaged, too long or nested too deeply, or contains another value.
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
    """Parse JSON.

    Raises:
        ConfigError: the text is not JSON, or is nested too deeply.
    """
    try:
        return decode_json(text, MAX_DEPTH)
    except ValueError as error:
        raise ConfigError(one_line(error)) from None


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        ConfigError: the text is not YAML, has a key twice, is nested too deeply, or becomes too
            large through aliases.
    """
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except ConfigError:
        raise
    # ValueError: an invalid date or number.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(one_line(error)) from None


def check(schema: type[_Model], values: Any) -> _Model:
    """Validate values with a schema.

    Raises:
        ConfigError: values have the wrong type or are out of range; the message names the keys.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Format the errors of a validation in one line."""
    found = error.errors(include_url=False)
    lines = [
        f"{'.'.join(map(_short, item['loc'])) or 'it'}: {item['msg']}, got {shown(item['input'])}"
        for item in found[:_SHOWN_ERRORS]
    ]
    return joined(lines, len(found))


def joined(lines: list[str], count: int) -> str:
    """Join messages in one line; `count` is the total number, of which only some may be listed."""
    more = [f"and {count - len(lines)} more"] if count > len(lines) else []
    return "; ".join(lines + more)


def shown(value: Any) -> str:
    """Return a short `repr` of a value in one line; a date as in YAML."""
    if isinstance(value, date):
        return str(value)
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return one_line(short.repr(value))
    except ValueError:  # an integer of more digits than Python converts to text
        return "a huge number"


def one_line(error: object) -> str:
    """Return a message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _short(part: object) -> str:
    return str(part)[:60]


def _too_deep() -> str:
    return f"it nests values more than {MAX_DEPTH} levels deep"


def _check_events(text: str) -> None:
    """Check depth and size without building the document, so that they cannot exhaust memory."""
    counts = [0]  # the number of values so far in each open node
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
                raise ConfigError(f"*{_short(event.anchor)} refers to a value that contains it")
            counts[-1] += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
        if len(counts) > MAX_DEPTH:
            raise ConfigError(_too_deep())
        if sum(counts) > MAX_NODES:
            raise ConfigError(f"it holds more than {MAX_NODES:,} values")
