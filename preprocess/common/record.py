"""Records: our own JSON files that decide something. Each holds the sha256 of its other values; types are checked.

    {"hours": 1.5, "record_sha256": "..."}

A record that was changed by hand, damaged or cut is refused when it is read.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from preprocess.common.errors import InputError
from preprocess.common.files import write_atomically
from preprocess.common.json_file import JsonObject

SEAL = "record_sha256"


class Form(BaseModel):
    """The types of the values that a record must have. It may have others."""

    model_config = ConfigDict(extra="allow", strict=True)


def seal(value: JsonObject) -> JsonObject:
    """The object with the sha256 of its other values, whatever their order."""
    return {**value, SEAL: _sha256(value)}


def write_record(path: Path, value: JsonObject) -> None:
    """Write the object, sealed, as a file that appears only once it is complete."""
    write_atomically(path, record_bytes(value))


def record_bytes(value: JsonObject) -> bytes:
    """The sealed object as a file has it."""
    return (json.dumps(seal(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_record(where: str, data: bytes, form: type[Form], action: str) -> JsonObject:
    """The object of a record. form: the types of its values.

    Raises InputError, with `where` and `action`, for bytes that are no record, and for one that was changed.
    """
    expected = "a record as it was written"
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"no JSON object ({error})", expected, action) from error
    if not isinstance(value, dict):
        raise InputError(where, f"JSON of type {type(value).__name__}", expected, action)
    try:
        found = _sha256(value)
    except (ValueError, RecursionError) as error:  # half of a surrogate pair, say
        raise InputError(where, f"values that can't be hashed ({error})", expected, action) from error
    if SEAL not in value:
        raise InputError(where, f"no {SEAL}: another program or another release wrote it", expected, action)
    if value[SEAL] != found:
        sealed = f"{str(value[SEAL])[:12]}, as its {SEAL} says"
        raise InputError(where, f"values with sha256 {found[:12]}: they were changed or damaged", sealed, action)
    try:
        form.model_validate(value)
    except RecursionError as error:
        raise InputError(where, "values nested too deep", expected, action) from error
    except ValidationError as error:
        raise InputError(where, first_problem(error), expected, action) from error
    return value


def first_problem(error: ValidationError) -> str:
    """The first value of an object that does not fit its form, and why."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"no {place}" if first["type"] == "missing" else f"{place} = {first['input']!r:.60} ({first['msg']})"


def _sha256(value: JsonObject) -> str:
    others = {name: each for name, each in value.items() if name != SEAL}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
