"""Check a finished corpus completely: hashes, and every byte of every shard against the index and the format.

Each shard is read by our own reader, and again by stock webdataset. Nothing is unpickled or written.
"""

import hashlib
import itertools
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject
from preprocess.corpus.index_rules import KEY_PATTERN
from preprocess.corpus.shards import (
    CORPUS_FILE,
    INDEX_FILE,
    MEMBERS,
    PLACES_SCHEMA,
    num_flac_samples,
    read_codes,
    read_index,
    read_info,
    read_meta,
)
from preprocess.corpus.storage import LocalFolder
from preprocess.corpus.text import tokenizer_fingerprint

Rows = dict[str, JsonObject]  # of the index: {key: row}
TokenCounter = Callable[
    [str, JsonObject], JsonObject
]  # (key, json member) -> columns of preprocess.corpus.token_counts
_BLOCK = tarfile.BLOCKSIZE
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
}
_LENGTHS = ("frames", "text_tokens", "system_tokens", "waveform_samples", "dialogues")
# What a clip's json member and its row of the index both say.
_SHARED = ("speaker", "language", "duration_sec")
_RECOPY = "Copy the shard again, or delete it and run preprocess.shard again to rebuild it."
_FOREIGN = "Another program wrote this: copy the shard from the folder that preprocess.shard wrote."


@dataclass(frozen=True)
class Member:
    """A file in a tar: its full name, key and suffix, the payload's offset in bytes, and the payload."""

    name: str
    key: str
    suffix: str
    offset: int
    payload: bytes


def verify_corpus(folder: Path | str, model: Path | None = None) -> Iterator[tuple[str, list[InputError]]]:
    """(shard name, its problems) of every shard, in the order of corpus.json.

    The first pair has the name and problems of the index, and those of the folder. model: a base model; the tokens of
    each text are then counted again. Raises InputError if corpus.json or the index can't be read, because then
    nothing can be compared, and for a model with another tokenizer.
    """
    if "://" in str(folder):
        raise InputError(
            str(folder),
            "an address",
            "a folder on this machine",
            "Training compares the sha256 of each shard that it fetches; to check all, copy the corpus here.",
        )
    storage = LocalFolder(folder)
    info = read_info(storage)
    count = _token_counter(model, info, storage.root / CORPUS_FILE) if model else None
    rows_of: dict[str, Rows] = {shard["name"]: {} for shard in info["shards"]}
    problems, seen = [], set()
    for row in read_index(storage, info).select([*_LENGTHS, *_SHARED, *PLACES_SCHEMA.names]).to_pylist():
        where = f"{storage.root / INDEX_FILE}[{row['key']}]"
        if row["key"] in seen:
            problems.append(InputError(where, "two rows of this key", "one row per clip", "Copy the folder again."))
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

    def verify(shard: JsonObject) -> list[InputError]:
        path, rows = storage.root / shard["name"], rows_of[shard["name"]]
        return list(verify_shard(path, shard, rows, info, count)) or list(compare_with_webdataset(path, rows))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing and reading release Python's lock
        for shard, shard_problems in zip(info["shards"], pool.map(verify, info["shards"]), strict=True):
            yield shard["name"], shard_problems


def _token_counter(model: Path, info: JsonObject, where: Path) -> TokenCounter:
    # Imported only where tokens are counted, because these import torch.
    from preprocess.corpus.base_model import read_base_model
    from preprocess.corpus.token_counts import token_counts

    base, recorded = read_base_model(model), info["text_tokenizer"]["fingerprint"]
    found = tokenizer_fingerprint(base.tokenizer)
    if found != recorded:
        expected = f"{recorded[:12]}, as {where} says"
        raise InputError(
            f"--model {model}", f"tokenizer {found[:12]}", expected, "Give the base of preprocess.shard."
        )
    return lambda key, meta: token_counts(base, key, meta, info["layout"]["system_text"])


def verify_shard(
    path: Path, shard: JsonObject, rows: Rows, info: JsonObject, count: TokenCounter | None = None
) -> Iterator[InputError]:
    """The problems of one shard. shard: its entry of corpus.json, which is `info`. rows: its rows of the index."""
    if not path.is_file():
        yield InputError(str(path), "no file", f"{shard['bytes']} bytes, as {CORPUS_FILE} says", _RECOPY)
        return
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if (len(data), found) != (shard["bytes"], shard["sha256"]):
        expected = f"{shard['bytes']} bytes with sha256 {shard['sha256'][:12]}, as {CORPUS_FILE} says"
        yield InputError(str(path), f"{len(data)} bytes with sha256 {found[:12]}", expected, _RECOPY)
    if shard.get("clips", len(rows)) != len(rows):
        yield InputError(str(path), f"{len(rows)} rows in the index", f"{shard['clips']} clips", _RECOPY)
    missing = {(key, suffix) for key, row in rows.items() for suffix in MEMBERS if _place(row, suffix)[1]}
    try:
        for member in read_tar(path, data):
            missing.discard((member.key, member.suffix))
            yield from _verify_member(f"{path}[{member.name}]", member, rows.get(member.key), info, count)
    except InputError as error:  # reading ends here: the next member's offset is unknown
        yield error
        return
    for key, suffix in sorted(missing):
        yield InputError(f"{path}[{key}]", f"no member {key}.{suffix}", f"one, as {INDEX_FILE} says", _RECOPY)


def _header(info: tarfile.TarInfo) -> bytes:
    """The header that preprocess.shard writes for a member of this name and size; b"" if ustar has none for it."""
    canonical = tarfile.TarInfo(info.name)
    canonical.size = info.size
    try:
        return canonical.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # a size below 0 or of 8 GiB and more
        return b""


def read_tar(path: Path, data: bytes) -> Iterator[Member]:
    """The members of a shard, in order. Raises InputError at the first byte that does not follow the format."""
    offset, keys, last = 0, set(), None
    while True:
        where = f"{path} at byte {offset}"
        header = data[offset : offset + _BLOCK]
        if header == bytes(_BLOCK):
            break
        if not header:
            raise InputError(where, "the end of the file", "a member, or two blocks of zeros", _RECOPY)
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise InputError(where, f"no tar header ({error})", "a header of 512 bytes", _RECOPY) from error
        if info.type != tarfile.REGTYPE:
            kind = _KINDS.get(info.type, f"an entry of type {info.type!r}")
            raise InputError(where, f"{kind} named {info.name!r}", "only regular files", _FOREIGN)
        key, _, suffix = info.name.partition(".")
        if suffix not in MEMBERS or not KEY_PATTERN.fullmatch(key):
            expected = f"KEY.json, KEY.codes.npy, KEY.flac with a key of {KEY_PATTERN.pattern}"
            raise InputError(where, f"a member named {info.name!r}", expected, _FOREIGN)
        if header != _header(info):
            found = f"a header of {info.name} with an owner, time or mode of its own"
            raise InputError(where, found, "the header that preprocess.shard writes", _FOREIGN)
        if key in keys and last is not None and (key != last[0] or MEMBERS.index(suffix) <= MEMBERS.index(last[1])):
            found = f"{info.name} after {'.'.join(last)}, and key {key} before"
            raise InputError(where, found, "each key once, with its members side by side", _FOREIGN)
        keys.add(key)
        last = (key, suffix)
        begin = offset + _BLOCK
        offset = begin + -(-info.size // _BLOCK) * _BLOCK
        if offset > len(data):
            found = f"the end of the file at byte {len(data)}, inside {info.name}"
            raise InputError(where, found, f"{info.size} bytes of it", _RECOPY)
        if any(data[begin + info.size : offset]):
            found = f"bytes other than zero behind {info.name}"
            raise InputError(where, found, "zeros up to the next block", _RECOPY)
        yield Member(info.name, key, suffix, begin, data[begin : begin + info.size])
    if len(data) % tarfile.RECORDSIZE or len(data) - offset < 2 * _BLOCK or any(data[offset:]):
        found = f"{len(data) - offset} bytes from the first block of zeros to the end"
        expected = f"only zeros, two blocks or more, up to a multiple of {tarfile.RECORDSIZE} bytes"
        raise InputError(f"{path} at byte {offset}", found, expected, _RECOPY)


def compare_with_webdataset(path: Path, rows: Rows) -> Iterator[InputError]:
    """The first sample of a shard that stock webdataset reads differently from training, which uses index offsets.

    webdataset gets an open file, so it follows no address (`pipe:`), and decodes nothing.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

    with open(path, "rb") as stream, open(path, "rb") as by_offset:
        samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
        in_order = sorted(rows.values(), key=lambda row: row["json_offset"])
        try:
            for row, sample in itertools.zip_longest(in_order, samples, fillvalue=JsonObject()):
                places = {f"{row['key']}.{suffix}": _place(row, suffix) for suffix in MEMBERS if row}
                expected = {
                    name: os.pread(by_offset.fileno(), size, offset)
                    for name, (offset, size, _) in places.items()
                    if size
                }
                suffixes = [suffix for suffix in sample if not suffix.startswith("__")]
                found = {f"{sample['__key__']}.{suffix}": sample[suffix] for suffix in suffixes}
                if found != expected:
                    yield InputError(
                        str(path),
                        f"{_list_members(found)}, as stock webdataset reads it",
                        f"{_list_members(expected)}, as {INDEX_FILE} says",
                        _RECOPY,
                    )
                    return
        except (ValueError, tarfile.TarError) as error:
            refusal = f"a tar that stock webdataset can't read ({error.args[0]})"
            yield InputError(str(path), refusal, "samples with one key each", _RECOPY)


def _list_members(sample: dict[str, bytes]) -> str:
    return ", ".join(f"{name} with crc32 {zlib.crc32(data):08x}" for name, data in sample.items()) or "no sample"


def _verify_member(
    where: str, member: Member, row: JsonObject | None, info: JsonObject, count: TokenCounter | None
) -> Iterator[InputError]:
    if row is None:
        yield InputError(where, f"a clip {member.key}", f"only the clips of {INDEX_FILE}", _FOREIGN)
        return
    found = member.offset, len(member.payload), zlib.crc32(member.payload)
    expected = _place(row, member.suffix)
    if found != expected:
        indexed = f"{_describe_place(expected)}, as {INDEX_FILE} says"
        yield InputError(where, _describe_place(found), indexed, _RECOPY)
        return
    try:
        if member.suffix == "json":
            meta = read_meta(member.payload)
            expected_columns = {name: meta[name] for name in _SHARED if name in meta}
            if count:
                expected_columns |= count(member.key, meta)
            _compare_columns(expected_columns, row)
        elif member.suffix == "flac":
            _compare_columns({"waveform_samples": num_flac_samples(member.payload)}, row)
        elif member.suffix == "codes.npy":
            codec = info["codec"]
            codes = read_codes(member.payload)
            shape = codec["num_codebooks"], row["frames"]
            if codes.shape != shape:
                raise ValueError(f"codes of {codes.shape[0]} codebooks x {codes.shape[1]} frames, not {shape}")
            if codes.max() >= codec["codebook_size"]:
                raise ValueError(f"code {codes.max()} of a codebook of {codec['codebook_size']}")
    except ValueError as error:
        yield InputError(where, str(error), "what preprocess.shard writes", _FOREIGN)


def _compare_columns(columns: JsonObject, row: JsonObject) -> None:
    """Raise ValueError for a column of the index that does not say what the member says."""
    for name, value in columns.items():
        found = row[name]
        if name == "dialogues":  # the index leaves out those that lost one of their clips
            value = [dialogue for dialogue in value if dialogue in (found or [])] if found else found
        if value != found:
            raise ValueError(f"{name} {value!r:.200}, and {found!r:.200} in {INDEX_FILE}")


def _place(row: JsonObject, suffix: str) -> tuple[int, int, int]:
    """(offset in bytes, bytes, crc32) that an index row has for the member `suffix`; 0 bytes for no member."""
    name = suffix.split(".")[0]
    return row[f"{name}_offset"], row[f"{name}_bytes"], row[f"{name}_crc32"]


def _describe_place(place: tuple[int, int, int]) -> str:
    return f"{place[1]} bytes at {place[0]} with crc32 {place[2]:08x}"
