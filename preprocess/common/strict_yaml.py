"""YAML into pydantic dataclasses, strictly: one error names all wrong values, and for an unknown key the nearest."""

import difflib
import re
import reprlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from preprocess.common.errors import InputError, system_reason
from preprocess.common.json_file import flatten

T = TypeVar("T")
# Config of every dataclass that `load_yaml` fills. Defaults are validated too.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)


def load_yaml(path: Path, template: type[T], defined_in: str, overrides: Sequence[str] = (), example: str = "") -> T:
    """The dataclass `template`, filled from a YAML file and `group.key=value` overrides; missing keys get defaults.

    defined_in: the source file that defines the keys; example: files to start from. Both are for error texts. Raises
    InputError for a missing or broken file, and a single one for all unknown keys and wrong values together.
    """
    try:
        values = _parse(str(path), path.read_bytes())
    except OSError as error:
        action = f"Give one of {example}, or a copy you changed."
        raise InputError(str(path), system_reason(error), "a recipe in YAML", action) from error
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
            f"Correct the recipe or the override; {defined_in} explains every key.",
        ) from error


def wrong_value(expected: str) -> PydanticCustomError:
    """The error that a dataclass's validator raises for a value that is not `expected`."""
    return PydanticCustomError("wrong_value", expected)


class _Loader(yaml.SafeLoader):
    """Builds only plain values. 1e-3 is a number (YAML 1.1: text), and a key given twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
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
    except Exception as error:  # a tag that does not fit its value raises anything, deep nesting RecursionError
        raise InputError(where, f"text that is no YAML: {error}", "YAML", "Correct it.") from error


def _parse_override(override: str) -> Any:
    """{"a": {"b": c}} for the override `a.b=c`."""
    where = f"override {override!r}"
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(where, "no =", "group.key=value", "Correct the override.")
    value = _parse(where, text)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _merged(old: object, new: object) -> Any:
    """`new`; if both are groups of keys, with the keys of `old` that `new` lacks."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def _describe_problem(problem: ErrorDetails, template: type, defined_in: str) -> tuple[str, str]:
    """(found, expected) for one of pydantic's errors."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "invalid_key"):
        nearest = difflib.get_close_matches(key, list(flatten(asdict(template()))), n=1, cutoff=0)[0]
        return f"unknown key {key} (nearest: {nearest})", f"only keys of {defined_in}"
    if problem["type"] == "dataclass_type":
        return f"{key}={_show(problem['input'])}", f"{key} keys and values (key: value)"
    return f"{key}={_show(problem['input'])}", f"{key} {problem['msg'].removeprefix('Input should be ')}"


def _show(value: object) -> str:
    """The value, shortened if it is long."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a very long {type(value).__name__}"
