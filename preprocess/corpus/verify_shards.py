"""Check a finished corpus whole: hashes, and every byte of every shard against the index and the format.

Each shard is read by our own reader of the format, and once more by stock webdataset. Nothing is unpickled or
written.
"""

import hashlib
import itertools
import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.corpus.shards import (
    CORPUS_FILE,
    INDEX_FILE,
    KEY_PATTERN,
    MEMBERS,
    read_codes,
    read_index,
    read_info,
    read_meta,
)
from preprocess.corpus.storage import LocalFolder

_BLOCK = tarfile.BLOCKSIZE
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
}
_AGAIN = "Copy the shard again, or delete it and run preprocess.shard again to rebuild it."
_FOREIGN = "Somebody else wrote here: take the shard from where preprocess.shard wrote it."


@dataclass(frozen=True)
class Member:
    """A regular file of a tar: its full name, key and suffix, where its payload lies, and the payload."""

    name: str
    key: str
    suffix: str
    offset: int
    payload: bytes


def verify_corpus(folder: Path | str) -> Iterator[tuple[str, list[InputError]]]:
    """(shard name, what is wrong with it) of every shard, in the order of corpus.json.

    The first pair is about the index and the folder and bears the index's name. Raises InputError where corpus.json
    or the index can't be read at all: nothing can be compared then.
    """
    if "://" in str(folder):
        raise InputError(
            str(folder),
            "an address",
            "a folder on this machine",
            "Training compares the sha256 of each shard that it fetches; copy the corpus here to check it whole.",
        )
    storage = LocalFolder(folder)
    info = read_info(storage)
    rows_of: dict[str, dict[str, dict]] = {shard["name"]: {} for shard in info["shards"]}
    problems, seen = [], set()
    for row in read_index(storage, info).select(["key", "shard", "frames", *_place_columns()]).to_pylist():
        where = f"{storage.root / INDEX_FILE}[{row['key']}]"
        if row["key"] in seen:
            problems.append(InputError(where, "two rows of this key", "one row a clip", "Copy the folder again."))
        seen.add(row["key"])
        if row["shard"] not in rows_of:
            found = f"shard {row['shard']!r}"
            problems.append(InputError(where, found, f"a shard that {CORPUS_FILE} names", "Copy the folder again."))
        else:
            rows_of[row["shard"]][row["key"]] = row
    for path in sorted(storage.root.glob("*.tar")):
        if path.name not in rows_of:
            expected = f"only the shards that {CORPUS_FILE} names"
            problems.append(InputError(str(path), "a tar of another corpus", expected, "Move it away."))
    yield INDEX_FILE, problems

    def verify(shard: dict) -> list[InputError]:
        path, rows = storage.root / shard["name"], rows_of[shard["name"]]
        return list(verify_shard(path, shard, rows, info["codec"])) or list(compare_with_webdataset(path, rows))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing and reading leave Python's lock
        for shard, found in zip(info["shards"], pool.map(verify, info["shards"]), strict=True):
            yield shard["name"], found


def verify_shard(path: Path, shard: dict, rows: dict[str, dict], codec: dict) -> Iterator[InputError]:
    """What is wrong with one shard, against its entry of corpus.json and its rows of the index (by key)."""
    if not path.is_file():
        yield InputError(str(path), "no file", f"{shard['bytes']} bytes, as {CORPUS_FILE} says", _AGAIN)
        return
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if (len(data), found) != (shard["bytes"], shard["sha256"]):
        expected = f"{shard['bytes']} bytes with sha256 {shard['sha256'][:12]}, as {CORPUS_FILE} says"
        yield InputError(str(path), f"{len(data)} bytes with sha256 {found[:12]}", expected, _AGAIN)
    if shard.get("clips", len(rows)) != len(rows):
        yield InputError(str(path), f"{len(rows)} rows in the index", f"{shard['clips']} clips", _AGAIN)
    missing = {(key, suffix) for key, row in rows.items() for suffix in MEMBERS if _place(row, suffix)[1]}
    try:
        for member in read_tar(path, data):
            missing.discard((member.key, member.suffix))
            yield from _verify_member(f"{path}[{member.name}]", member, rows.get(member.key), codec)
    except InputError as error:  # the walk can't go on: what comes after has no known border
        yield error
        return
    for key, suffix in sorted(missing):
        yield InputError(f"{path}[{key}]", f"no member {key}.{suffix}", f"one, as {INDEX_FILE} says", _AGAIN)


def read_tar(path: Path, data: bytes) -> Iterator[Member]:
    """The members of a shard, header by header, held to the format. Raises InputError at the first that is not."""
    offset, keys, last = 0, set(), None
    while True:
        where = f"{path} at byte {offset}"
        header = data[offset : offset + _BLOCK]
        if header == bytes(_BLOCK):
            break
        if not header:
            raise InputError(where, "the end of the file", "a member, or two blocks of zeros", _AGAIN)
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise InputError(where, f"no tar header ({error})", "a header of 512 bytes", _AGAIN) from error
        if info.type != tarfile.REGTYPE:
            kind = _KINDS.get(info.type, f"an entry of type {info.type!r}")
            raise InputError(where, f"{kind} named {info.name!r}", "regular files alone", _FOREIGN)
        key, _, suffix = info.name.partition(".")
        if suffix not in MEMBERS or not KEY_PATTERN.fullmatch(key):
            expected = f"KEY.json, KEY.codes.npy, KEY.flac with a key of {KEY_PATTERN.pattern}"
            raise InputError(where, f"a member named {info.name!r}", expected, _FOREIGN)
        canonical = tarfile.TarInfo(info.name)
        canonical.size = info.size
        if header != canonical.tobuf(tarfile.USTAR_FORMAT):
            found = f"a header of {info.name} with an owner, time or mode of its own"
            raise InputError(where, found, "the header that preprocess.shard writes", _FOREIGN)
        if key in keys and last is not None and (key != last[0] or MEMBERS.index(suffix) <= MEMBERS.index(last[1])):
            found = f"{info.name} after {'.'.join(last)}, and key {key} before"
            raise InputError(where, found, "each key once, its members side by side", _FOREIGN)
        keys.add(key)
        last = (key, suffix)
        begin = offset + _BLOCK
        offset = begin + -(-info.size // _BLOCK) * _BLOCK
        if offset > len(data):
            found = f"the end of the file at byte {len(data)}, inside {info.name}"
            raise InputError(where, found, f"{info.size} bytes of it", _AGAIN)
        if any(data[begin + info.size : offset]):
            raise InputError(where, f"bytes other than zero behind {info.name}", "zeros up to the next block", _AGAIN)
        yield Member(info.name, key, suffix, begin, data[begin : begin + info.size])
    if len(data) % tarfile.RECORDSIZE or len(data) - offset < 2 * _BLOCK or any(data[offset:]):
        found = f"{len(data) - offset} bytes from the first block of zeros to the end"
        expected = f"zeros alone, two blocks or more, up to a multiple of {tarfile.RECORDSIZE} bytes"
        raise InputError(f"{path} at byte {offset}", found, expected, _AGAIN)


def compare_with_webdataset(path: Path, rows: dict[str, dict]) -> Iterator[InputError]:
    """The first sample of a shard that stock webdataset reads otherwise than training does, by the index's offsets.

    webdataset gets an open file, so no address of its own (`pipe:`) is followed, and nothing is decoded.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

    with open(path, "rb") as stream, open(path, "rb") as by_offset:
        samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
        in_order = sorted(rows.values(), key=lambda row: row["json_offset"])
        try:
            for row, sample in itertools.zip_longest(in_order, samples, fillvalue={}):
                key, places = row.get("key"), {suffix: _place(row, suffix) for suffix in MEMBERS if row}
                expected = {
                    f"{key}.{suffix}": os.pread(by_offset.fileno(), size, offset)
                    for suffix, (offset, size, _) in places.items()
                    if size
                }
                key = sample.get("__key__")
                found = {f"{key}.{suffix}": data for suffix, data in sample.items() if not suffix.startswith("__")}
                if found != expected:
                    yield InputError(
                        str(path),
                        f"{_list_members(found)}, as stock webdataset reads it",
                        f"{_list_members(expected)}, as {INDEX_FILE} says",
                        _AGAIN,
                    )
                    return
        except (ValueError, tarfile.TarError) as error:
            found = f"a tar that stock webdataset can't read ({error.args[0]})"
            yield InputError(str(path), found, "samples with one key each", _AGAIN)


def _list_members(sample: dict[str, bytes]) -> str:
    return ", ".join(f"{name} with crc32 {zlib.crc32(data):08x}" for name, data in sample.items()) or "no sample"


def _verify_member(where: str, member: Member, row: dict | None, codec: dict) -> Iterator[InputError]:
    if row is None:
        yield InputError(where, f"a clip {member.key}", f"the clips of {INDEX_FILE} alone", _FOREIGN)
        return
    found = member.offset, len(member.payload), zlib.crc32(member.payload)
    expected = _place(row, member.suffix)
    if found != expected:
        yield InputError(where, _describe_place(found), f"{_describe_place(expected)}, as {INDEX_FILE} says", _AGAIN)
        return
    try:
        if member.suffix == "json":
            read_meta(member.payload)
        elif member.suffix == "codes.npy":
            codes = read_codes(member.payload)
            shape = codec.get("num_codebooks", len(codes)), row["frames"]
            if codes.shape != shape:
                raise ValueError(f"codes of {codes.shape[0]} codebooks x {codes.shape[1]} frames, not {shape}")
            if codes.max() >= codec.get("codebook_size", 1 << 16):
                raise ValueError(f"code {codes.max()} of a codebook of {codec['codebook_size']}")
    except ValueError as error:
        yield InputError(where, str(error), "what preprocess.shard writes", _FOREIGN)


def _place_columns() -> list[str]:
    return [f"{suffix.split('.')[0]}_{part}" for suffix in MEMBERS for part in ("offset", "bytes", "crc32")]


def _place(row: dict, suffix: str) -> tuple[int, int, int]:
    name = suffix.split(".")[0]
    return row[f"{name}_offset"], row[f"{name}_bytes"], row[f"{name}_crc32"]


def _describe_place(place: tuple[int, int, int]) -> str:
    return f"{place[1]} bytes at {place[0]} with crc32 {place[2]:08x}"
