"""Shard format 1, both sides: write a shard, build the index, read clips back, verify.

A corpus folder holds

    corpus.json        what the corpus is: codec, tokenizer, layout, hours, each shard's size and sha256
    index.parquet      a row a clip: where its members lie, its lengths, speaker, split, use
    failures.jsonl     each manifest row or clip that is not in the shards, and why
    shard-000000.tar   WebDataset tar; a clip is three members that share a key:
        KEY.json           text as given and normalised, speaker, language, durations, source, dialogues
        KEY.codes.npy      uint16 [codebooks, frames]
        KEY.flac           16 kHz mono waveform (absent with --waveforms none)

Nothing is pickled, every member's offset, size and crc32 stand in the index, and the bytes of a shard depend
on its clips alone: sorted members, fixed owner and time.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.errors import InputError

FORMAT_VERSION = 1
CORPUS_FILE = "corpus.json"
INDEX_FILE = "index.parquet"
FAILURES_FILE = "failures.jsonl"
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
MEMBERS = ("json", "codes.npy", "flac")
# Figures of each clip, flat nullable columns of the index; preprocess.quality says what they are.
QUALITY = (
    "rms_dbfs",
    "peak",
    "clipped_share",
    "silence_share",
    "leading_silence_sec",
    "trailing_silence_sec",
    "bandwidth_hz",
    "letters_per_sec",
    "code_entropy_bits",
    "speech_share",
)
_TAR_BLOCK_BYTES = 512
_MAX_OPEN_SHARDS = 64  # a process; 800 hours are some 1,600 shards, more than a process may have open

# One named reference of a dialogue, and one dialogue: a sample whose references the manifest names. `position`
# is the dialogue's place in the clip's meta["dialogues"]; the index lacks dialogues whose reference was lost.
_REFERENCE = pa.struct([("key", pa.string()), ("text_tokens", pa.int32())])
_DIALOGUE = pa.struct([("position", pa.int32()), ("text_tokens", pa.int32()), ("references", pa.list_(_REFERENCE))])

# A clip is a target with a drawn reference where `draws_reference`, and once more a target for each of its
# `dialogues`; a clip with neither is a reference only. `use` is false where a decision over the whole corpus
# dropped the clip, and `reason` says which. `derived_from` is the key of the clip whose audio this one is a processed
# copy of (noise added, say), null where it is none; an index written before that column reads as all null.
INDEX_SCHEMA = pa.schema(
    [("key", pa.string()), ("shard", pa.string())]
    + [
        (f"{member}_{part}", pa.int64())
        for member in ("json", "codes", "flac")
        for part in ("offset", "bytes", "crc32")
    ]
    + [
        ("frames", pa.int32()),
        ("text_tokens", pa.int32()),
        ("waveform_samples", pa.int32()),  # of the 16 kHz waveform; 0 where there is none
        ("duration_sec", pa.float64()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("split", pa.string()),
        ("draws_reference", pa.bool_()),
        ("derived_from", pa.string()),
        ("dialogues", pa.list_(_DIALOGUE)),
        ("use", pa.bool_()),
        ("reason", pa.string()),
    ]
    + [(name, pa.float32()) for name in QUALITY]
)


@dataclass(frozen=True)
class Clip:
    """A clip as a shard stores it. `codes` is uint16 [codebooks, frames]; `flac` the encoded 16 kHz file or None."""

    key: str
    meta: dict
    codes: np.ndarray
    flac: bytes | None = None

    def members(self) -> list[tuple[str, bytes]]:
        """(suffix, bytes) of each member, in the order of the tar."""
        codes = io.BytesIO()
        np.save(codes, np.ascontiguousarray(self.codes, dtype=np.uint16), allow_pickle=False)
        text = json.dumps(self.meta, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        members = [("json", text.encode()), ("codes.npy", codes.getvalue())]
        return members + ([("flac", self.flac)] if self.flac is not None else [])


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shard(path: Path, clips: Iterable[Clip]) -> list[dict]:
    """Write the tar and return, a clip, where its members lie: the index columns `key` to `flac_crc32`.

    Clips come sorted by key. The file appears under its name only once it is complete and on disk.
    """
    rows, last_key = [], ""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for clip in clips:
                assert KEY_PATTERN.fullmatch(clip.key), clip.key
                assert clip.key > last_key, f"{clip.key} after {last_key}: clips must come sorted, keys once"
                last_key = clip.key
                row = {"key": clip.key, "shard": path.name, "flac_offset": 0, "flac_bytes": 0, "flac_crc32": 0}
                for suffix, data in clip.members():
                    info = tarfile.TarInfo(f"{clip.key}.{suffix}")
                    info.size = len(data)
                    name = suffix.split(".")[0]
                    row[f"{name}_offset"] = tar.offset + _TAR_BLOCK_BYTES
                    row[f"{name}_bytes"] = len(data)
                    row[f"{name}_crc32"] = zlib.crc32(data)
                    tar.addfile(info, io.BytesIO(data))
                rows.append(row)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
    return rows


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_corpus(folder: Path, index_rows: list[dict], corpus: dict) -> None:
    """Write index.parquet (rows sorted by key), then corpus.json: a folder with corpus.json is finished."""
    rows = sorted(index_rows, key=lambda row: row["key"])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), buffer, compression="zstd")
    write_atomically(folder / INDEX_FILE, buffer.getvalue())
    write_atomically(folder / CORPUS_FILE, _pretty_json({"format_version": FORMAT_VERSION, **corpus}))


def _pretty_json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


class Corpus:
    """A finished corpus folder, open for reading: `info` (corpus.json), `index` (a row a clip) and the clips.

    Opening compares each shard's size with corpus.json; each member's crc32 is checked as it is read. File
    descriptors open on first use, so a Corpus may be handed to worker processes.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / CORPUS_FILE).is_file():
            raise InputError(
                str(self.folder),
                f"no {CORPUS_FILE}",
                "a folder that preprocess.shard finished",
                "Run the same `python -m preprocess.shard` command again: it continues where it stopped.",
            )
        self.info = json.loads((self.folder / CORPUS_FILE).read_text())
        if self.info.get("format_version") != FORMAT_VERSION:
            raise InputError(
                str(self.folder / CORPUS_FILE),
                f"format_version {self.info.get('format_version')}",
                str(FORMAT_VERSION),
                "Read it with the release that wrote it, or run preprocess.shard again.",
            )
        for shard in self.info["shards"]:
            path = self.folder / shard["name"]
            found = path.stat().st_size if path.is_file() else None
            if found != shard["bytes"]:
                raise InputError(
                    str(path),
                    "no file" if found is None else f"{found} bytes",
                    f"{shard['bytes']} bytes, as {CORPUS_FILE} says",
                    "Copy the shard again, or delete it and run preprocess.shard again to rebuild it.",
                )
        self.index = pq.read_table(self.folder / INDEX_FILE, schema=INDEX_SCHEMA)
        self._files: dict[str, int] = {}

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' hashes, the index and what the prompt depends on: names this very corpus."""
        facts = [sorted((s["name"], s["sha256"]) for s in self.info["shards"])]
        facts += [self.info[name] for name in ("codec", "text_tokenizer", "layout")]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(sha256_file(self.folder / INDEX_FILE).encode())
        return digest.hexdigest()

    def clip(self, row: int, waveform: bool = False) -> Clip:
        """The clip of index row `row`, with its FLAC bytes where `waveform` and the shard has them."""
        where = {name: self.index.column(name)[row].as_py() for name in INDEX_SCHEMA.names[:11]}
        meta = json.loads(self._read(where, "json"))
        codes = np.load(io.BytesIO(self._read(where, "codes")), allow_pickle=False)
        flac = self._read(where, "flac") if waveform and where["flac_bytes"] else None
        return Clip(where["key"], meta, codes, flac)

    def _read(self, where: dict, member: str) -> bytes:
        shard = where["shard"]
        data = os.pread(self._open(shard), where[f"{member}_bytes"], where[f"{member}_offset"])
        if zlib.crc32(data) != where[f"{member}_crc32"]:
            raise InputError(
                f"{self.folder / shard}[{where['key']}]",
                f"{member} member with crc32 {zlib.crc32(data):08x}",
                f"{where[f'{member}_crc32']:08x}, as {INDEX_FILE} says",
                "The shard changed or decayed: copy it again, or delete it and run preprocess.shard again.",
            )
        return data

    def _open(self, shard: str) -> int:
        """The descriptor of a shard; the one used longest ago is closed where too many are open."""
        if shard in self._files:
            self._files[shard] = self._files.pop(shard)
        else:
            if len(self._files) == _MAX_OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.folder / shard, os.O_RDONLY)
        return self._files[shard]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}
