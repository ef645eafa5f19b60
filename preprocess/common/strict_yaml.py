"""YAML into pydantic dataclasses, strictly: one error names all wrong values, and the key nearest to an unknown."""

import difflib
import re
import reprlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from preprocess.common.errors import InputError

# Of every dataclass that `load_yaml` fills. A default is checked beside the values that are given.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)


def load_yaml(path: Path, template: type, defined_in: str, overrides: Sequence[str] = (), example: str = "") -> Any:
    """An instance of the dataclass `template` from a YAML file and `group.key=value` overrides, complete.

    defined_in: the source file where the keys stand with their meaning; example: files to start from. Raises
    InputError for a missing or broken file, and one for all unknown keys and wrong values together.
    """
    try:
        values = _parse(str(path), path.read_bytes())
    except OSError as error:
        found = (error.strerror or str(error)).lower()
        raise InputError(
            str(path), found, "a recipe in YAML", f"Give one of {example}, or a copy you changed."
        ) from error
    if not isinstance(values, dict):
        found = "no keys" if values is None else f"a {type(values).__name__}"
        raise InputError(str(path), found, "keys and values (key: value)", "Correct the file.")
    for override in overrides:
        values = _merged(values, _parse_override(override))
    try:
        return TypeAdapter(template).validate_python(values)
    except ValidationError as error:
        problems = [_describe_problem(problem, template, defined_in) for problem in error.errors()]
        raise InputError(
            str(path),
            "; ".join(found for found, _ in problems),
            "; ".join(dict.fromkeys(expected for _, expected in problems)),
            f"Correct the recipe or the override; every key stands in {defined_in} with its meaning.",
        ) from error


def wrong_value(expected: str) -> PydanticCustomError:
    """What a validator of a dataclass raises: the value is not `expected`."""
    return PydanticCustomError("wrong_value", expected)


class _Loader(yaml.SafeLoader):
    """Plain values alone. 1e-3 is a number, which YAML 1.1 reads as text; a key that stands twice is an error."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.MarkedYAMLError(problem=f"{', '.join(sorted(twice))} twice", problem_mark=node.start_mark)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(where: str, text: str | bytes) -> object:
    try:
        return _Loader(text if isinstance(text, str) else text.decode()).get_single_data()
    except Exception as error:  # a tag that does not fit its value can raise anything, a deep nesting RecursionError
        raise InputError(where, f"text that is no YAML: {error}", "YAML", "Correct it.") from error


def _parse_override(override: str) -> dict:
    """`a.b=c` as {"a": {"b": c}}."""
    where = f"override {override!r}"
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(where, "no =", "group.key=value", "Correct the override.")
    value = _parse(where, text)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _merged(old: object, new: object) -> Any:
    """`new`, and where both are groups the keys of `old` that it leaves out."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def _describe_problem(problem: ErrorDetails, template: type, defined_in: str) -> tuple[str, str]:
    """(what was found, what is expected)"""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "invalid_key"):
        nearest = difflib.get_close_matches(key, _dotted_keys(template()), n=1, cutoff=0)[0]
        return f"unknown key {key} (nearest: {nearest})", f"keys of {defined_in} alone"
    if problem["type"] == "dataclass_type":
        return f"{key}={_show(problem['input'])}", f"{key} keys and values (key: value)"
    return f"{key}={_show(problem['input'])}", f"{key} {problem['msg'].removeprefix('Input should be ')}"


def _show(value: object) -> str:
    """The value, cut where it is long."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a very long {type(value).__name__}"


def _dotted_keys(template: Any, prefix: str = "") -> list[str]:
    keys = []
    for item in fields(template):
        value = getattr(template, item.name)
        keys += _dotted_keys(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return keys
