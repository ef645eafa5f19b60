"""Where a corpus lies: a folder on this machine, or any address that fsspec opens, through a cache on this machine.

Files at an address are fetched whole, once for all ranks and loader workers of a machine, and their sha256 is
compared with corpus.json as they arrive. Whole, because the samples of a pack come from shards all over the corpus: a
step of 8 packs reads some 200 of them and the first few steps read them all, so nothing can be read ahead of, and a
request a member would be some 200 requests a second and rank, for ever, with nothing to check but a crc32.

So the cache wants room for the whole corpus: 800 hours are 1.2 GB of codes and some 50 GB of FLAC. With less it
thrashes, and `notes` says so.
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

from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file, sync
from preprocess.common.locks import locked

DEFAULT_CACHE = Path("~/.cache/higgs-voice-training")
# Waits between the tries of a fetch, with jitter: half a minute together, as object stores ask for.
WAITS_SEC = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_CACHED_NAME = re.compile(r"[0-9a-f]{64}(\.partial)?")

T = TypeVar("T")


@dataclass(frozen=True)
class Cache:
    """Where files from addresses are kept on this machine, and how many bytes of them (None: as many as there are).

    Files are named by their sha256, so corpora and runs share one folder; what was used longest ago goes first. A
    file that is being read survives its removal on POSIX: beyond the limit there may be one file a reading process.
    """

    folder: Path = DEFAULT_CACHE
    limit_bytes: int | None = None


class Address(str):
    """An address of fsspec. `address / name` is the address of a file under it, as with a Path."""

    def __truediv__(self, name: str) -> "Address":
        return Address(f"{self.rstrip('/')}/{name}")


class LocalFolder:
    """Files of a folder on this machine, read in place."""

    max_open = 64  # a process; 800 hours are some 1,600 shards, more than a process may have open

    def __init__(self, folder: Path | str) -> None:
        self.root = Path(folder)

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, None where there is none."""
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def check(self, files: list[dict]) -> None:
        """Compare each file's size with its {"name", "bytes", "sha256"} of corpus.json. Raises InputError."""
        for file in files:
            path = self.root / file["name"]
            found = path.stat().st_size if path.is_file() else None
            if found != file["bytes"]:
                raise InputError(
                    str(path),
                    "no file" if found is None else f"{found} bytes",
                    f"{file['bytes']} bytes, as corpus.json says",
                    "Copy the file again, or delete it and run preprocess.shard again to rebuild it.",
                )

    def open(self, file: dict) -> int:
        """A descriptor of the file."""
        return os.open(self.root / file["name"], os.O_RDONLY)

    def address(self) -> str:
        """Its full path, for records."""
        return str(self.root.resolve())

    def where(self, file: dict) -> str:
        """What an error calls the file."""
        return str(self.root / file["name"])

    def notes(self) -> list[str]:
        """What a user should know before a run."""
        return []


class RemoteFolder:
    """Files under an address, each fetched into the cache when it is first opened."""

    max_open = 1  # an open file that was removed from the cache still takes its room on the disk

    def __init__(self, address: str, cache: Cache) -> None:
        self.root = Address(address.rstrip("/"))
        self.folder = cache.folder.expanduser()
        self.limit_bytes = cache.limit_bytes
        self._files: list[dict] = []

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, not cached; None where there is none."""
        address = self.root / name

        def read() -> bytes | None:
            filesystem, path = fsspec.url_to_fs(address)
            try:
                return filesystem.cat_file(path)
            except FileNotFoundError:
                return None

        return _with_retries(address, read)

    def check(self, files: list[dict]) -> None:
        """Take the list of files with their {"name", "bytes", "sha256"}.

        Raises InputError where the cache has no room for them, or its file system no locks.
        """
        self._files = files
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "evict.lock"):  # now, rather than at the first fetch
            pass
        missing = min(self._total_bytes(), self.limit_bytes or self._total_bytes()) - self._cached_bytes()
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise InputError(
                f"cache {self.folder}",
                f"{free / 1e9:.1f} GB free on its disk",
                f"{missing / 1e9:.1f} GB for what is still to be fetched of {self.root}",
                "Name a folder on a larger local disk with --cache, or a limit with --cache-gb.",
            )

    def open(self, file: dict) -> int:
        """A descriptor of the cached file, fetched if need be. Raises InputError once no further try is worth it."""
        path = self.folder / file["sha256"]
        descriptor = _open_cached(path)
        if descriptor is None:
            with _locked(path.with_suffix(".lock")):  # one process of the machine fetches, the others wait for it
                descriptor = _open_cached(path)
                if descriptor is None:
                    descriptor = self._fetch(file, path)
        return descriptor

    def address(self) -> str:
        """As it was given."""
        return str(self.root)

    def where(self, file: dict) -> str:
        """What an error calls the file."""
        return f"{self.root / file['name']} (cached as {self.folder / file['sha256']})"

    def notes(self) -> list[str]:
        """How much is fetched already, and a warning where the cache can't hold the corpus."""
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

    def _fetch(self, file: dict, path: Path) -> int:
        address, temporary = self.root / file["name"], path.with_suffix(".partial")
        self._make_room(file["bytes"])

        def fetch() -> None:
            filesystem, remote = fsspec.url_to_fs(address)
            filesystem.get_file(remote, str(temporary))
            found, size = sha256_file(temporary), temporary.stat().st_size
            if found != file["sha256"]:
                raise _Damaged(f"{size} bytes with sha256 {found[:12]}, not {file['bytes']} with {path.name[:12]}")
            sync(temporary)

        try:
            _with_retries(address, fetch)
            descriptor = os.open(temporary, os.O_RDONLY)  # before another process can remove it for room
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return descriptor

    def _make_room(self, wanted_bytes: int) -> None:
        """Remove the files used longest ago until `wanted_bytes` more are within the limit."""
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


def open_folder(folder: Path | str, cache: Cache | None) -> LocalFolder | RemoteFolder:
    """The storage of a path, or of an address of fsspec such as s3://bucket/shards or https://host/shards."""
    if "://" in str(folder):
        return RemoteFolder(str(folder), cache or Cache())
    return LocalFolder(folder)


class _Damaged(Exception):
    """What arrived is not what corpus.json says."""


def _open_cached(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    os.utime(descriptor)  # used now: the modification time is what _make_room goes by
    return descriptor


def _locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """Without locks each rank and loader worker would fetch each file for itself, into the same place."""
    return locked(path, "Name a folder on a local disk with --cache.")


def _with_retries(address: str, attempt: Callable[[], T]) -> T:
    """What `attempt` returns, tried again after each of WAITS_SEC. Raises InputError when it is of no use."""
    for wait_sec in (*WAITS_SEC, None):
        try:
            return attempt()
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
            raise _unreadable(address, error, "Correct --data, or the rights and packages it needs.") from error
        except Exception as error:  # the services behind fsspec have exceptions of their own
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise _unreadable(address, error, "The disk of --cache is full: make room there.") from error
            if wait_sec is None:
                action = (
                    f"Tried {len(WAITS_SEC) + 1} times: see whether the service answers, or upload the file again."
                )
                raise _unreadable(address, error, action) from error
            time.sleep(wait_sec * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _unreadable(address: str, error: Exception, action: str) -> InputError:
    found = str(error) if isinstance(error, _Damaged) else f"{type(error).__name__}: {error}"
    return InputError(address, found, "the file that preprocess.shard wrote", action)
