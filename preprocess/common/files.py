"""Files and folders that appear only once they are complete and on disk, and the sha256 of files."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from preprocess.common.errors import InputError, explain_write_errors

_BUFFER_BYTES = 1 << 18  # webdataset.TarWriter writes 10 KiB at a time


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that appears as `path` once the block ends: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb", buffering=_BUFFER_BYTES) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_to_disk(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that appears only once it is complete."""
    with atomic_file(path) as file:
        file.write(data)


def write_output(path: Path, data: bytes, flag: str = "--out") -> None:
    """Write the file that a command's `flag` names, and make its folder. Raises InputError if it can't be written."""
    with explain_write_errors(path.parent, f"Free space or name another file with {flag}, then try again."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def write_json(path: Path, value: Any, *, sort_keys: bool = False, ensure_ascii: bool = True) -> None:
    """Write a file of indented JSON that appears only once it is complete. Flags: those of json.dumps."""
    text = json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    write_atomically(path, f"{text}\n".encode())


def refuse_used_folder(folder: Path) -> None:
    """Raise InputError unless `folder` is new or empty: a command that writes a whole folder overwrites none."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        expected = "a folder that is new or empty"
        raise InputError(str(folder), "something there already", expected, "Name another --out, or move it away.")


def finish_folder(temporary: Path, folder: Path) -> None:
    """Sync all files in `temporary` to disk, then rename it to `folder`, which is missing or an empty folder."""
    for path in [*temporary.rglob("*"), temporary]:
        sync_to_disk(path)
    os.replace(temporary, folder)
    sync_to_disk(folder.parent)


def replace_link(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing an older one in one step."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    sync_to_disk(link.parent)


def sync_to_disk(path: Path) -> None:
    """fsync a file's bytes, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """As sha256_file, from a cache while the file's size and modification time stay the same."""
    state = path.stat()
    return _sha256_of_version(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256_of_version(path: Path, num_bytes: int, mtime_ns: int) -> str:
    return sha256_file(path)
