"""Where a corpus is stored: a folder on this machine, or an address that fsspec opens, through a local cache.

Files at an address are fetched whole, once for all ranks and loader workers of a machine, and their sha256 is
compared with corpus.json. Whole, because the samples of a pack come from shards all over the corpus: a step of 8
packs reads some 200 shards, and the first few steps read all of them, so reading ahead gains nothing. One request per
member would be some 200 requests per second and rank, for the whole run, with only a crc32 to check.

So the cache should have room for the whole corpus: 800 hours are 1.2 GB of codes and some 50 GB of FLAC. With less,
shards are fetched again and again, and `notes` warns of it.
"""

import contextlib
import errno
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fsspec

from preprocess.common.errors import InputError, system_reason
from preprocess.common.files import sha256_file, sync_to_disk
from preprocess.common.json_file import JsonObject
from preprocess.common.locks import locked

DEFAULT_CACHE = Path("~/.cache/higgs-voice-training")
# Waits between the attempts of a fetch, before jitter: half a minute in all, as object stores recommend.
WAITS_SEC = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_CACHED_NAME = re.compile(r"[0-9a-f]{64}(\.partial)?")

T = TypeVar("T")


@dataclass(frozen=True)
class Cache:
    """The local folder for files from addresses, and its limit in bytes (None: no limit).

    Files are named by their sha256, so corpora and runs share one folder. Those used longest ago are removed first.
    POSIX keeps a removed file as long as it is open, so each reading process may hold one file beyond the limit.
    """

    folder: Path = DEFAULT_CACHE
    limit_bytes: int | None = None


class Address(str):
    """An address of fsspec. `address / name` is the address of a file in it, as with a Path."""

    def __truediv__(self, name: str) -> "Address":
        return Address(f"{self.rstrip('/')}/{name}")


class LocalFolder:
    """Files of a folder on this machine, read in place."""

    max_open = 64  # files per process; 800 hours are some 1,600 shards, more than a process may open

    def __init__(self, folder: Path | str) -> None:
        self.root = Path(folder)

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None if it is missing. Raises InputError where it can't be read."""
        path = self.root / name
        try:
            return path.read_bytes() if path.is_file() else None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            found = system_reason(error) if isinstance(error, OSError) else str(error)
            action = "Name the folder that preprocess.shard wrote, or make it readable."
            raise InputError(str(path), found, "a file that can be read", action) from error

    def check(self, files: list[JsonObject]) -> None:
        """Raise InputError for a file of another size than corpus.json says. files: {"name", "bytes", "sha256"}."""
        for file in files:
            path = self.root / file["name"]
            found = path.stat().st_size if path.is_file() else None
            if found != file["bytes"]:
                size = "no file" if found is None else f"{found} bytes"
                action = "Copy the file again, or delete it and run preprocess.shard again to rebuild it."
                raise InputError(str(path), size, f"{file['bytes']} bytes, as corpus.json says", action)

    def open(self, file: JsonObject) -> int:
        """A file descriptor of the file. Raises InputError where it is gone, or can't be read."""
        path = self.root / file["name"]
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            expected = "a file that can be read, as corpus.json names it"
            raise InputError(str(path), system_reason(error), expected, "Bring the folder back.") from error

    def address(self) -> str:
        """The folder's full path, for records."""
        return str(self.root.resolve())

    def where(self, file: JsonObject) -> str:
        """The file's name in error texts."""
        return str(self.root / file["name"])

    def notes(self) -> list[str]:
        """Lines to print before a run: none."""
        return []


class RemoteFolder:
    """Files at an address, each fetched into the cache when it is first opened."""

    max_open = 1  # a file that was removed from the cache takes disk space as long as it is open

    def __init__(self, address: str, cache: Cache) -> None:
        self.root = Address(address.rstrip("/"))
        self.folder = cache.folder.expanduser()
        self.limit_bytes = cache.limit_bytes
        self._files: list[JsonObject] = []

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, which is not cached; None if it is missing."""
        address = self.root / name

        def read() -> bytes | None:
            filesystem, path = fsspec.url_to_fs(address)
            try:
                data: bytes = filesystem.cat_file(path)
                return data
            except FileNotFoundError:
                return None

        return _with_retries(address, read)

    def check(self, files: list[JsonObject]) -> None:
        """Remember the files ({"name", "bytes", "sha256"} each) that `open` will fetch and `notes` counts.

        Raises InputError if the cache has too little room for them, or its file system has no locks.
        """
        self._files = files
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "evict.lock"):  # fails now rather than at the first fetch
            pass
        missing = min(self._total_bytes(), self.limit_bytes or self._total_bytes()) - self._cached_bytes()
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            found = f"{free / 1e9:.1f} GB free on its disk"
            expected = f"{missing / 1e9:.1f} GB for what is still to be fetched from {self.root}"
            action = "Name a folder on a larger local disk with --cache, or a limit with --cache-gb."
            raise InputError(f"cache {self.folder}", found, expected, action)

    def open(self, file: JsonObject) -> int:
        """A file descriptor of the cached file, fetched if missing. Raises InputError if the fetch keeps failing."""
        path = self.folder / file["sha256"]
        descriptor = _open_cached(path)
        if descriptor is None:
            with _locked(path.with_suffix(".lock")):  # one process per machine fetches, the others wait
                descriptor = _open_cached(path)
                if descriptor is None:
                    descriptor = self._fetch(file, path)
        return descriptor

    def address(self) -> str:
        """The address as it was given."""
        return str(self.root)

    def where(self, file: JsonObject) -> str:
        """The file's name in error texts."""
        return f"{self.root / file['name']} (cached as {self.folder / file['sha256']})"

    def notes(self) -> list[str]:
        """Lines to print before a run: how much is cached, and a warning if the cache can't hold the corpus."""
        total, cached = self._total_bytes(), self._cached_bytes()
        notes = [
            f"{self.root}: {cached / 1e9:.1f} of {total / 1e9:.1f} GB are in the cache {self.folder}; "
            "the first steps fetch the rest"
        ]
        if self.limit_bytes is not None and self.limit_bytes < total:
            notes.append(
                f"warning: the cache holds {self.limit_bytes / 1e9:.1f} GB and the corpus has {total / 1e9:.1f} GB: "
                "samples come from all over the corpus, so shards will be fetched again and again; raise --cache-gb"
            )
        return notes

    def _total_bytes(self) -> int:
        return sum(file["bytes"] for file in self._files)

    def _cached_bytes(self) -> int:
        return sum(file["bytes"] for file in self._files if (self.folder / file["sha256"]).exists())

    def _fetch(self, file: JsonObject, path: Path) -> int:
        address, temporary = self.root / file["name"], path.with_suffix(".partial")
        self._make_room(file["bytes"])

        def fetch() -> None:
            filesystem, remote = fsspec.url_to_fs(address)
            filesystem.get_file(remote, str(temporary))
            found, size = sha256_file(temporary), temporary.stat().st_size
            if found != file["sha256"]:
                raise _Damaged(f"{size} bytes with sha256 {found[:12]}, not {file['bytes']} with {path.name[:12]}")
            sync_to_disk(temporary)

        try:
            _with_retries(address, fetch)
            descriptor = os.open(temporary, os.O_RDONLY)  # before another process can remove it
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return descriptor

    def _make_room(self, wanted_bytes: int) -> None:
        """Remove the files used longest ago until `wanted_bytes` more fit the limit."""
        if self.limit_bytes is None:
            return
        with _locked(self.folder / "evict.lock"):
            found = []
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):
                    if _CACHED_NAME.fullmatch(entry.name):
                        status = entry.stat()
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
            room = self.limit_bytes - wanted_bytes - sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if room >= 0:
                    break
                if not path.endswith(".partial"):
                    os.unlink(path)
                    room += size


Storage = LocalFolder | RemoteFolder


def open_folder(folder: Path | str, cache: Cache | None) -> Storage:
    """The storage of a path, or of an address of fsspec such as s3://bucket/shards or https://host/shards."""
    if "://" in str(folder):
        return RemoteFolder(str(folder), cache or Cache())
    return LocalFolder(folder)


class _Damaged(Exception):
    """A fetched file does not have the sha256 that corpus.json says."""


def _open_cached(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    os.utime(descriptor)  # used now: _make_room sorts by modification time
    return descriptor


def _locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """A lock in the cache. Without one, each rank and loader worker would fetch each file into the same place."""
    return locked(path, "Name a folder on a local disk with --cache.")


def _with_retries(address: str, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, repeated after each of WAITS_SEC. Raises InputError if that fails or is no use."""
    for wait_sec in (*WAITS_SEC, None):
        try:
            return attempt()
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
            action = "Correct --data, or the rights and packages that it needs."
            raise _unreadable(address, error, action) from error
        except Exception as error:  # each service behind fsspec has its own exceptions
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise _unreadable(address, error, "The disk of --cache is full: make room there.") from error
            if wait_sec is None:
                action = f"Tried {len(WAITS_SEC) + 1} times: check the service, or upload the file again."
                raise _unreadable(address, error, action) from error
            time.sleep(wait_sec * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _unreadable(address: str, error: Exception, action: str) -> InputError:
    found = str(error) if isinstance(error, _Damaged) else f"{type(error).__name__}: {error}"
    return InputError(address, found, "the file that preprocess.shard wrote", action)
