"""Files that other software wrote: whatever is wrong with one is an InputError."""

import json
import stat
from pathlib import Path
from typing import Any

from preprocess.common.errors import InputError, system_reason

JsonObject = dict[str, Any]


def read_file(path: Path, expected: str, action: str) -> bytes:
    """The bytes of a file. Raises InputError with `expected` and `action` if it is missing or can't be read."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
        where, found = path, "a folder" if path.is_dir() else "no regular file"  # reading a pipe might never end
    except FileNotFoundError:
        where, found = path.parent, f"no {path.name}" if path.parent.is_dir() else "no such folder"
    except NotADirectoryError:
        where, found = path.parent, "a file, not a folder"
    except OSError as error:
        where, found = path, system_reason(error)
    raise InputError(str(where), found, expected, action)


def read_json_object(path: Path, expected: str, action: str) -> JsonObject:
    """The JSON object in a UTF-8 file. Raises InputError as `read_file` does, and for broken or other JSON."""
    data = read_file(path, expected, action)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"broken JSON ({error})", expected, action) from error
    if not isinstance(value, dict):
        raise InputError(str(path), f"JSON of type {type(value).__name__}, not an object", expected, action)
    return value


def flatten(nested: JsonObject, prefix: str = "") -> JsonObject:
    """Nested objects as one, with dotted keys, in the same order: {"a": {"b": 1}} gives {"a.b": 1}."""
    flat: JsonObject = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
