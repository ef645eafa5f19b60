"""Files that other software wrote, read so that whatever is wrong with them is an InputError."""

import json
import os
import stat
from pathlib import Path

from preprocess.common.errors import InputError


def read_file(path: Path, expected: str, action: str) -> bytes:
    """The bytes of a file. Raises InputError with `expected` and `action` where there is none that can be read."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
        where, found = path, "a folder" if path.is_dir() else "no regular file"  # opening a pipe would wait for ever
    except FileNotFoundError:
        where, found = path.parent, f"no {path.name}" if path.parent.is_dir() else "no such folder"
    except NotADirectoryError:
        where, found = path.parent, "no folder but a file"
    except OSError as error:
        where, found = path, os.strerror(error.errno).lower()
    raise InputError(str(where), found, expected, action)


def read_json_object(path: Path, expected: str, action: str) -> dict:
    """The JSON object in a UTF-8 file. Raises InputError as `read_file` does, and for a file of anything else."""
    data = read_file(path, expected, action)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"broken JSON ({error})", expected, action) from error
    if not isinstance(value, dict):
        raise InputError(str(path), f"JSON of type {type(value).__name__}, no object", expected, action)
    return value
