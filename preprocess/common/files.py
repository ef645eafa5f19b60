"""Files and folders that are there whole or not at all, and their sha256."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from preprocess.common.errors import explain_write_errors

_BUFFER_BYTES = 1 << 18  # webdataset.TarWriter writes 10 KiB at a time


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing, which appears as `path` once it is whole: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb", buffering=_BUFFER_BYTES) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def write_output(path: Path, data: bytes, flag: str = "--out") -> None:
    """Write the file that `flag` of a command names, and the folders above it. Raises InputError where it can't."""
    with explain_write_errors(path.parent, f"Free space or name another file with {flag}, then try again."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def write_json(path: Path, value: Any, **options: bool) -> None:
    """Write a file of indented JSON so that it is there whole or not at all. options: those of json.dumps."""
    write_atomically(path, (json.dumps(value, indent=2, **options) + "\n").encode())


def finish_folder(temporary: Path, folder: Path) -> None:
    """Make all that `temporary` holds durable, then give it the name `folder`, which is free or an empty folder."""
    for path in [*temporary.rglob("*"), temporary]:
        sync(path)
    os.replace(temporary, folder)
    sync(folder.parent)


def replace_link(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, in one move."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    sync(link.parent)


def sync(path: Path) -> None:
    """Make the bytes of a file durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return sha256_open(file)


def sha256_open(file: BinaryIO) -> str:
    """Hex sha256 of the rest of an open file, read in blocks."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_unchanged(path: Path) -> str:
    """As sha256_file; the file is read again only when its size or time has changed."""
    state = path.stat()
    return _sha256_of(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256_of(path: Path, num_bytes: int, mtime_ns: int) -> str:
    return sha256_file(path)
