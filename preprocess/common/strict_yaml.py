"""YAML into dataclasses, strictly: an unknown key names the nearest one, and all problems come at once."""

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from preprocess.common.errors import InputError


def load_yaml(path: Path, template: type, defined_in: str, overrides: Sequence[str] = (), example: str = "") -> Any:
    """An instance of the dataclass `template` from a YAML file and `group.key=value` overrides, complete.

    defined_in: the source file where the keys stand with their meaning; example: files to start from. Raises
    InputError for a missing or broken file, unknown keys and values of a wrong type.
    """
    if not path.is_file():
        raise InputError(str(path), "no file", "a recipe in YAML", f"Give one of {example}, or a copy you changed.")
    try:
        given = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:  # the parser's own words carry line and column
        raise InputError(str(path), f"text that is no YAML: {error}", "YAML", "Correct the file.") from error
    if not OmegaConf.is_dict(given):
        raise InputError(str(path), "a list", "keys and values (key: value)", "Correct the file.")
    try:
        given = OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides)))
        _refuse_unknown_keys(str(path), OmegaConf.to_container(given), template, defined_in)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(template), given))
    except OmegaConfBaseException as error:
        where = f"{path}: {getattr(error, 'full_key', None) or 'recipe'}"
        raise InputError(
            where, str(error).splitlines()[0], "a value of the type the field has", "Correct the recipe or override."
        ) from error


def refuse_wrong_values(where: str, expectations: Sequence[tuple[str, object, str, bool]]) -> None:
    """Raise InputError for every (key, value, what is expected, whether it holds) that does not hold."""
    wrong = [(key, value, expected) for key, value, expected, holds in expectations if not holds]
    if wrong:
        raise InputError(
            where,
            "; ".join(f"{key}={value}" for key, value, _ in wrong),
            "; ".join(f"{key} {expected}" for key, _, expected in wrong),
            "Correct the recipe or the override.",
        )


def _refuse_unknown_keys(where: str, given: dict, template: type, defined_in: str) -> None:
    known = _dotted_keys(template())
    unknown = [key for key in _given_keys(given) if key not in known]
    if unknown:
        hints = [f"{key} (nearest: {difflib.get_close_matches(key, known, n=1, cutoff=0)[0]})" for key in unknown]
        raise InputError(
            where,
            f"unknown key {', '.join(hints)}",
            f"keys of {defined_in} alone",
            f"Correct the spelling; every key stands in {defined_in} with its meaning.",
        )


def _dotted_keys(template: object, prefix: str = "") -> list[str]:
    keys = []
    for item in fields(template):
        value = getattr(template, item.name)
        keys += _dotted_keys(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return keys


def _given_keys(given: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in given.items():
        keys += _given_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return keys
