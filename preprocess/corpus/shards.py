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
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.common.errors import InputError
from preprocess.common.files import atomic_file, sha256_open, write_atomically, write_json
from preprocess.corpus.storage import Cache, LocalFolder, RemoteFolder, open_folder

T = TypeVar("T")
FORMAT_VERSION = 1
CORPUS_FILE = "corpus.json"
INDEX_FILE = "index.parquet"
FAILURES_FILE = "failures.jsonl"
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
MEMBERS = ("json", "codes.npy", "flac")
# Figures of each clip, flat nullable columns of the index; preprocess.judges.figures says what they are.
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
# The header that np.save writes for codes: read as it is, so that no other array, pickled ones first, gets in.
_CODES_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '<u2', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)
_TAR_BLOCK_BYTES = 512
_TAR_FIELDS = {"mtime": 0, "mode": 0o644, "user": "", "group": ""}  # TarWriter's own are the clock and "bigdata"

# A dialogue is a sample whose conversation the manifest gives, and all that a plan needs of it: its tokens besides
# audio, the labelled ones among them, and its audios in order, that of the clip itself among them. `spoken`: in a
# turn of the assistant, where its codes stand. `position` is the dialogue's place in the clip's meta["dialogues"]
# (preprocess.corpus.dialogue.read_dialogue); the index lacks dialogues of which a clip was lost.
_AUDIO = pa.struct([("key", pa.string()), ("has_codes", pa.bool_()), ("trained", pa.bool_())])
_DIALOGUE = pa.struct(
    [
        ("position", pa.int32()),
        ("stream_tokens", pa.int32()),
        ("text_labels", pa.int32()),
        ("audios", pa.list_(_AUDIO)),
    ]
)

# Where the members of a clip lie.
PLACES_SCHEMA = pa.schema(
    [("key", pa.string()), ("shard", pa.string())]
    + [
        (f"{member}_{part}", pa.int64())
        for member in ("json", "codes", "flac")
        for part in ("offset", "bytes", "crc32")
    ]
)

# A clip is a target with a drawn reference where `draws_reference`, and once more a target for each of its
# `dialogues`; a clip with neither is a reference only. `use` is false where a decision over the whole corpus
# dropped the clip, and `reason` says which. `system_tokens` counts the system text that a row with a drawn reference
# has of its own, null where it has that of corpus.json. `derived_from` is the key of the clip whose audio this one is
# a processed copy of (noise added, say), null where it is none.
INDEX_SCHEMA = pa.schema(
    [
        *PLACES_SCHEMA,
        ("frames", pa.int32()),
        ("text_tokens", pa.int32()),
        ("system_tokens", pa.int32()),
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
    + [("speaker_similarity", pa.float32())]  # preprocess.judges.speaker; null where it was not measured
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


def write_shard(path: Path, clips: Iterable[Clip]) -> list[dict]:
    """Write the tar and return, a clip, where its members lie: the index columns `key` to `flac_crc32`.

    Clips come sorted by key. The file appears under its name only once it is complete and on disk.
    """
    from webdataset import TarWriter  # imports torch: seconds that reading a corpus does without

    rows, last_key = [], ""
    with atomic_file(path) as file, TarWriter(file, encoder=False, **_TAR_FIELDS) as tar:
        for clip in clips:
            assert KEY_PATTERN.fullmatch(clip.key), clip.key
            assert clip.key > last_key, f"{clip.key} after {last_key}: clips must come sorted, keys once"
            last_key = clip.key
            row = {"key": clip.key, "shard": path.name, "flac_offset": 0, "flac_bytes": 0, "flac_crc32": 0}
            for suffix, data in clip.members():
                name = suffix.split(".")[0]
                row[f"{name}_offset"] = tar.tarstream.offset + _TAR_BLOCK_BYTES
                row[f"{name}_bytes"] = len(data)
                row[f"{name}_crc32"] = zlib.crc32(data)
                tar.write({"__key__": clip.key, suffix: data})  # alone: TarWriter sorts the members of a sample
            rows.append(row)
    return rows


def write_corpus(folder: Path, index_rows: list[dict], corpus: dict) -> None:
    """Write index.parquet (rows sorted by key), then corpus.json: a folder with corpus.json is finished.

    corpus.json gets the format's version and the size and sha256 of the index.
    """
    rows = sorted(index_rows, key=lambda row: row["key"])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), buffer, compression="zstd")
    data = buffer.getvalue()
    write_atomically(folder / INDEX_FILE, data)
    index = {"name": INDEX_FILE, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    info = {"format_version": FORMAT_VERSION, "index": index, **corpus}
    write_json(folder / CORPUS_FILE, info, sort_keys=True, ensure_ascii=False)


def read_meta(data: bytes) -> dict:
    """What a json member says. Raises ValueError for what write_shard does not write."""
    try:
        meta = json.loads(data.decode())
    except RecursionError as error:
        raise ValueError("json nested too deep") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("text_normalised"), str):
        raise ValueError("no json object with a text_normalised")
    if not isinstance(meta.get("dialogues"), list):
        raise ValueError("no list of dialogues")
    return meta


def read_codes(data: bytes) -> np.ndarray:
    """The uint16 codes [codebooks, frames] of a codes.npy member, read-only. Raises ValueError for another array."""
    header = _CODES_HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
        raise ValueError(f"{data[:80]!r}, not the header of a uint16 array of two dimensions")
    shape = int(header[2]), int(header[3])
    if len(data) - header.end() != 2 * shape[0] * shape[1] or not data[header.end() :]:
        raise ValueError(f"{len(data) - header.end()} bytes for {shape[0]} x {shape[1]} codes")
    return np.frombuffer(data, dtype="<u2", offset=header.end()).reshape(shape)


def read_info(storage: LocalFolder | RemoteFolder) -> dict:
    """corpus.json of a finished corpus. Raises InputError."""
    where, data = str(storage.root / CORPUS_FILE), storage.read(CORPUS_FILE)
    if data is None:
        raise InputError(
            str(storage.root),
            f"no {CORPUS_FILE}",
            "a folder that preprocess.shard finished",
            "Run the same `python -m preprocess.shard` command again: it continues where it stopped.",
        )
    try:
        info = json.loads(data)
        version = info.get("format_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            where, f"no JSON object ({error})", "what preprocess.shard wrote", "Copy it again."
        ) from error
    if version != FORMAT_VERSION:
        raise InputError(
            where,
            f"format_version {version}",
            str(FORMAT_VERSION),
            "Read it with the release that wrote it, or run preprocess.shard again into a new folder.",
        )
    return info


def read_index(storage: LocalFolder | RemoteFolder, info: dict, schema: pa.Schema = INDEX_SCHEMA) -> pa.Table:
    """The columns of `schema` of the index, once it has the hash that corpus.json gives. Raises InputError."""
    numbered = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    entry = info["index"]
    descriptor = storage.open(entry)
    with open(descriptor, "rb") as file:
        found = sha256_open(file)
        if found != entry["sha256"]:
            raise InputError(
                storage.where(entry),
                f"sha256 {found[:12]}",
                f"{entry['sha256'][:12]}, as {CORPUS_FILE} says",
                "The index changed or decayed: copy the folder again.",
            )
        return pq.read_table(file, schema=schema, read_dictionary=numbered)


class Corpus:
    """A finished corpus, open for reading: `info` (corpus.json), `index` (a row a clip) and the clips.

    folder: a path, or an address of fsspec (s3://bucket/shards), whose files then go through `cache`.
    schema: what to read of the index, at least PLACES_SCHEMA's columns; their types may be narrower.
    Opening compares the index with its hash in corpus.json, and each shard's size; each member's crc32 is checked as
    it is read. File descriptors open on first use, so a Corpus may be handed to worker processes.
    """

    def __init__(self, folder: Path | str, cache: Cache | None = None, schema: pa.Schema = INDEX_SCHEMA) -> None:
        self._storage = open_folder(folder, cache)
        self.folder = self._storage.root
        self._files: dict[str, int] = {}
        self.info = read_info(self._storage)
        self._storage.check([*self.info["shards"], self.info["index"]])
        self.index = read_index(self._storage, self.info, schema)
        self._shards = {shard["name"]: shard for shard in self.info["shards"]}
        # Whole columns as numpy: an element of an arrow column costs as much as reading a member. The index then
        # shares their memory, and the pieces they were read in are freed.
        self._places = {}
        for name in PLACES_SCHEMA.names[2:]:
            number = self.index.column_names.index(name)
            self._places[name] = self.index.column(number).to_numpy()
            self.index = self.index.set_column(number, self.index.field(number), pa.array(self._places[name]))

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' hashes, the index and what the prompt depends on: names this very corpus."""
        facts = [sorted((s["name"], s["sha256"]) for s in self.info["shards"])]
        facts += [self.info[name] for name in ("codec", "text_tokenizer", "layout")]
        facts += [self.info["index"]["sha256"]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def address(self) -> str:
        """Where it lies, as a full path or an address."""
        return self._storage.address()

    def notes(self) -> list[str]:
        """What a user should know before a run: of a corpus at an address, what is cached and whether all fits."""
        return self._storage.notes()

    def clip(self, row: int, waveform: bool = False) -> Clip:
        """The clip of index row `row`, with its FLAC bytes where `waveform` and the shard has them.

        Raises InputError, naming shard and key, for a member that is not what the index or the format says.
        """
        meta = self.meta(row)
        codes = self._decode(row, "codes", read_codes)
        flac = self._decode(row, "flac", bytes) if waveform and self._places["flac_bytes"][row] else None
        return Clip(self.index.column("key")[row].as_py(), meta, codes, flac)

    def meta(self, row: int) -> dict:
        """The clip's json member alone. Raises InputError as `clip` does."""
        return self._decode(row, "json", read_meta)

    def _decode(self, row: int, member: str, decode: Callable[[bytes], T]) -> T:
        offset, size, crc32 = (int(self._places[f"{member}_{part}"][row]) for part in ("offset", "bytes", "crc32"))
        shard, key = (self.index.column(name)[row].as_py() for name in ("shard", "key"))
        data = os.pread(self._open(shard), size, offset)
        if zlib.crc32(data) != crc32:
            raise InputError(
                f"{self._where(shard)}[{key}]",
                f"{member} member with crc32 {zlib.crc32(data):08x}",
                f"{crc32:08x}, as {INDEX_FILE} says",
                "The shard changed or decayed: copy it again, or delete it and run preprocess.shard again.",
            )
        try:
            return decode(data)
        except ValueError as error:
            raise InputError(
                f"{self._where(shard)}[{key}]",
                f"{member} member: {error}",
                "what preprocess.shard writes",
                "The shard is not its work: run `python -m preprocess.verify` on the folder.",
            ) from error

    def _where(self, shard: str) -> str:
        return self._storage.where(self._shards[shard])

    def _open(self, shard: str) -> int:
        """The descriptor of a shard; the one used longest ago is closed where too many are open."""
        if shard in self._files:
            self._files[shard] = self._files.pop(shard)
        else:
            while len(self._files) >= self._storage.max_open:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = self._storage.open(self._shards.get(shard, {"name": shard}))
        return self._files[shard]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}
