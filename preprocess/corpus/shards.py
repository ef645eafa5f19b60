"""Shard format 1, both sides: write shards and the index, read clips back.

A corpus folder contains

    corpus.json        facts of the corpus: codec, tokenizer, layout, hours, each shard's size and sha256
    index.parquet      one row per clip: where its members are, its lengths, speaker, split, use
    failures.jsonl     each manifest row or clip that is not in the shards, and why
    shard-000000.tar   WebDataset tar; a clip is three members with the same key:
        KEY.json           text as given and normalised, speaker, language, durations, source, dialogues
        KEY.codes.npy      uint16 [codebooks, frames]
        KEY.flac           16 kHz mono waveform (absent with --waveforms none)

Nothing is pickled. The index has every member's offset, size and crc32. The bytes of a shard depend only on its
clips: members are sorted, owner and time are constants.
"""

import functools
import hashlib
import io
import json
import os
import re
import weakref
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from pydantic import ValidationError

from preprocess.common.errors import InputError, first_line
from preprocess.common.files import atomic_file, write_atomically
from preprocess.common.json_file import JsonObject
from preprocess.common.record import first_problem, read_record, write_record
from preprocess.corpus.clip_form import ClipForm
from preprocess.corpus.corpus_record import CorpusForm
from preprocess.corpus.index_rules import KEY_PATTERN, check_columns
from preprocess.corpus.storage import Cache, Storage, open_folder

T = TypeVar("T")
FORMAT_VERSION = 1
CORPUS_FILE = "corpus.json"
INDEX_FILE = "index.parquet"
FAILURES_FILE = "failures.jsonl"
MEMBERS = ("json", "codes.npy", "flac")
# Figures of each clip: nullable columns of the index, which preprocess.judges.figures defines.
QUALITY = (
    "rms_dbfs",
    "peak",
    "clipped_share",
    "silence_share",
    "leading_silence_sec",
    "trailing_silence_sec",
    "bandwidth_hz",
    "channel_difference",
    "letters_per_sec",
    "code_entropy_bits",
    "speech_share",
)
# The header that np.save writes for codes. Any other header, above all that of a pickled array, is refused.
_CODES_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '<u2', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)
_TAR_BLOCK_BYTES = 512
_TAR_FIELDS = {"mtime": 0, "mode": 0o644, "user": "", "group": ""}  # TarWriter's defaults: the clock, "bigdata"

# A sample whose conversation the manifest gives, with all that a plan needs: its tokens without audio, the labelled
# ones among them, and its audios in order, the clip's own included. `has_codes`: the audio's codes are in the
# dialogue, in a turn of the assistant. `position` indexes the clip's meta["dialogues"]
# (preprocess.corpus.dialogue.read_dialogue). The index leaves out dialogues that lost one of their clips.
_AUDIO = pa.struct([("key", pa.string()), ("has_codes", pa.bool_()), ("trained", pa.bool_())])
_DIALOGUE = pa.struct(
    [
        ("position", pa.int32()),
        ("stream_tokens", pa.int32()),
        ("text_labels", pa.int32()),
        ("audios", pa.list_(_AUDIO)),
    ]
)

# Where the members of a clip are in its shard.
PLACES_SCHEMA = pa.schema(
    [("key", pa.string()), ("shard", pa.string())]
    + [
        (f"{member}_{part}", pa.int64())
        for member in ("json", "codes", "flac")
        for part in ("offset", "bytes", "crc32")
    ]
)

# A clip is a target with a drawn reference if `draws_reference`, and once more for each of its `dialogues`. A clip
# with neither serves only as a reference. `use` is false if a decision over the whole corpus dropped the clip;
# `reason` names it. `system_tokens` counts the row's own system text; null means that of corpus.json. `derived_from`
# is the key of the clip whose audio this clip is a processed copy of (with added noise, say); null for an original.
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
    """A clip as a shard stores it. `codes`: uint16 [codebooks, frames]; `flac`: bytes of the 16 kHz file, or None."""

    key: str
    meta: JsonObject
    codes: npt.NDArray[np.uint16]
    flac: bytes | None = None

    def members(self) -> list[tuple[str, bytes]]:
        """(suffix, bytes) of each member, in the order of the tar."""
        codes = io.BytesIO()
        np.save(codes, np.ascontiguousarray(self.codes, dtype=np.uint16), allow_pickle=False)
        text = json.dumps(self.meta, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        members = [("json", text.encode()), ("codes.npy", codes.getvalue())]
        return members + ([("flac", self.flac)] if self.flac is not None else [])


def write_shard(path: Path, clips: Iterable[Clip]) -> list[JsonObject]:
    """Write the tar; returns one row per clip with the columns of PLACES_SCHEMA.

    Clips must be sorted by key. The file appears under its name only once it is complete and on disk.
    """
    from webdataset import TarWriter  # imports torch, which takes seconds and readers do not need

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
                tar.write({"__key__": clip.key, suffix: data})  # one by one: TarWriter would sort members
            rows.append(row)
    return rows


def write_corpus(folder: Path, index_rows: list[JsonObject], corpus: JsonObject) -> None:
    """Write index.parquet (rows sorted by key), then corpus.json, which marks the folder as finished.

    corpus.json is `corpus` with the format's version and the size and sha256 of the index.
    """
    rows = sorted(index_rows, key=lambda row: row["key"])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), buffer, compression="zstd")
    data = buffer.getvalue()
    write_atomically(folder / INDEX_FILE, data)
    index = {"name": INDEX_FILE, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    info = {"format_version": FORMAT_VERSION, "index": index, **corpus}
    write_record(folder / CORPUS_FILE, info)


def read_meta(data: bytes) -> JsonObject:
    """The object in a json member. Raises ValueError for anything that write_shard does not write."""
    try:
        meta = json.loads(data.decode())
    except RecursionError as error:
        raise ValueError("json nested too deep") from error
    try:
        ClipForm.model_validate(meta)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    return dict(meta)


def read_codes(data: bytes) -> npt.NDArray[np.uint16]:
    """Codes uint16 [codebooks, frames] of a codes.npy member, read-only. Raises ValueError for any other array."""
    header = _CODES_HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
        raise ValueError(f"{data[:80]!r}, not the header of a uint16 array of two dimensions")
    shape = int(header[2]), int(header[3])
    if len(data) - header.end() != 2 * shape[0] * shape[1] or not data[header.end() :]:
        raise ValueError(f"{len(data) - header.end()} bytes for {shape[0]} x {shape[1]} codes")
    return np.frombuffer(data, dtype="<u2", offset=header.end()).reshape(shape)


_MOST_SAMPLES = 1 << 30  # 18 hours at 16 kHz; a header can say more than any memory holds


def num_flac_samples(flac: bytes) -> int:
    """Number of samples of a FLAC file, by its header. Raises ValueError for any other file."""
    try:
        info = soundfile.info(io.BytesIO(flac))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"no FLAC file ({error})") from error
    if info.format != "FLAC":
        raise ValueError(f"a file of {info.format}, no FLAC")
    if not 0 < info.frames <= _MOST_SAMPLES:
        raise ValueError(f"a FLAC file of {info.frames} samples")
    return int(info.frames)


def read_info(storage: Storage) -> JsonObject:
    """corpus.json of a finished corpus. Raises InputError if it is missing, broken or of another format version."""
    where, data = str(storage.root / CORPUS_FILE), storage.read(CORPUS_FILE)
    if data is None:
        action = "Run the same `python -m preprocess.shard` command again: it continues where it stopped."
        raise InputError(str(storage.root), f"no {CORPUS_FILE}", "a folder that preprocess.shard finished", action)
    action = "Copy it again, or run the same `python -m preprocess.shard` command again: it writes it anew."
    info = read_record(where, data, CorpusForm, action)
    version = info["format_version"]
    if version != FORMAT_VERSION:
        action = "Read it with the release that wrote it, or run preprocess.shard again into a new folder."
        raise InputError(where, f"format_version {version}", str(FORMAT_VERSION), action)
    return info


def read_index(storage: Storage, info: JsonObject, schema: pa.Schema = INDEX_SCHEMA) -> pa.Table:
    """The index's columns that `schema` names.

    Raises InputError unless it has the sha256 of corpus.json, and columns that preprocess.shard can have written.
    """
    numbered = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    entry = info["index"]
    with open(storage.open(entry), "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry["sha256"]:
            expected = f"{entry['sha256'][:12]}, as {CORPUS_FILE} says"
            action = "The index was changed or damaged: copy the folder again."
            raise InputError(storage.where(entry), f"sha256 {found[:12]}", expected, action)
        try:
            index = pq.read_table(file, schema=schema, read_dictionary=numbered)
        except (pa.ArrowException, OSError, ValueError) as error:
            found = f"a table that can't be read ({first_line(error)})"
            action = "Something else wrote it: copy the folder again from where preprocess.shard wrote it."
            raise InputError(
                storage.where(entry), found, f"the columns of shard format {FORMAT_VERSION}", action
            ) from error
    check_columns(index, storage.where(entry))
    return index


class Corpus:
    """A finished corpus, open for reading: `info` (corpus.json), `index` (one row per clip) and the clips.

    folder: a path, or an address of fsspec (s3://bucket/shards), whose files then go through `cache`.
    schema: the columns of the index to read, at least those of PLACES_SCHEMA; types may be narrower.
    Opening checks the index's sha256 and each shard's size against corpus.json; reading a member checks its crc32.
    File descriptors are opened on first use, so a Corpus may be passed to worker processes.
    """

    def __init__(self, folder: Path | str, cache: Cache | None = None, schema: pa.Schema = INDEX_SCHEMA) -> None:
        self._storage = open_folder(folder, cache)
        self.folder = self._storage.root
        self._files = _closed_with(self)
        self.info = read_info(self._storage)
        self._storage.check([*self.info["shards"], self.info["index"]])
        self.index = read_index(self._storage, self.info, schema)
        self._shards = {shard["name"]: shard for shard in self.info["shards"]}
        # Whole columns as numpy, because one element of an arrow column costs as much as reading a member. The index
        # then shares their memory, and the chunks that parquet was read in are freed.
        self._places: dict[str, npt.NDArray[np.int64]] = {}
        for name in PLACES_SCHEMA.names[2:]:
            number = self.index.column_names.index(name)
            self._places[name] = self.index.column(number).to_numpy()
            self.index = self.index.set_column(number, self.index.field(number), pa.array(self._places[name]))
        self._frames, self._samples = (
            self.index.column(name).to_numpy() if name in schema.names else None
            for name in ("frames", "waveform_samples")
        )

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' and the index's hashes and what the prompt depends on: identifies this corpus."""
        facts = [sorted((s["name"], s["sha256"]) for s in self.info["shards"])]
        facts += [self.info[name] for name in ("codec", "text_tokenizer", "layout")]
        facts += [self.info["index"]["sha256"]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def address(self) -> str:
        """The corpus's full path, or its address."""
        return self._storage.address()

    def notes(self) -> list[str]:
        """Lines to print before a run. For a corpus at an address: how much is cached, and whether it fits."""
        return self._storage.notes()

    def clip(self, row: int, waveform: bool = False) -> Clip:
        """The clip of index row `row`, with its FLAC bytes if `waveform` and the shard has them.

        Raises InputError, with shard and key, for a member that does not match the index or the format.
        """
        meta = self.meta(row)
        codes = self._decode(row, "codes", functools.partial(self._read_codes, row))
        read_flac = functools.partial(self._read_flac, row)
        flac = self._decode(row, "flac", read_flac) if waveform and self._places["flac_bytes"][row] else None
        return Clip(self.index.column("key")[row].as_py(), meta, codes, flac)

    def meta(self, row: int) -> JsonObject:
        """The json member of the clip of index row `row`. Raises InputError as `clip` does."""
        return self._decode(row, "json", read_meta)

    def _read_codes(self, row: int, data: bytes) -> npt.NDArray[np.uint16]:
        """As read_codes. Raises ValueError for codes that the codec lacks or the index does not count, too."""
        codes, codec = read_codes(data), self.info["codec"]
        if self._frames is not None and codes.shape[1] != self._frames[row]:
            raise ValueError(f"codes of {codes.shape[1]} frames, not {self._frames[row]} as {INDEX_FILE} says")
        if len(codes) != codec["num_codebooks"]:
            raise ValueError(f"codes of {len(codes)} codebooks, not {codec['num_codebooks']}")
        if codes.max() >= codec["codebook_size"]:  # on a GPU it would end in a device assert
            raise ValueError(f"code {codes.max()} of a codebook of {codec['codebook_size']}")
        return codes

    def _read_flac(self, row: int, data: bytes) -> bytes:
        """The bytes of a FLAC member. Raises ValueError for another file, or another length than the index says."""
        found = num_flac_samples(data)
        if self._samples is not None and found != self._samples[row]:
            raise ValueError(f"a waveform of {found} samples, not {self._samples[row]} as {INDEX_FILE} says")
        return data

    def _decode(self, row: int, member: str, decode: Callable[[bytes], T]) -> T:
        offset, size, crc32 = (int(self._places[f"{member}_{part}"][row]) for part in ("offset", "bytes", "crc32"))
        shard, key = (self.index.column(name)[row].as_py() for name in ("shard", "key"))
        self._check_place(shard, key, offset, size)
        data = os.pread(self._open(shard), size, offset)
        if zlib.crc32(data) != crc32:
            found = f"{member} member with crc32 {zlib.crc32(data):08x}"
            action = "The shard was changed or damaged: copy it again, or delete it and run preprocess.shard again."
            raise InputError(self._where(shard, key), found, f"{crc32:08x}, as {INDEX_FILE} says", action)
        try:
            return decode(data)
        except ValueError as error:
            found = f"{member} member: {error}"
            action = "Something else wrote the shard: run `python -m preprocess.verify` on the folder."
            raise InputError(self._where(shard, key), found, "what preprocess.shard writes", action) from error

    def _check_place(self, shard: str, key: str, offset: int, size: int) -> None:
        """Raise InputError where the index names a clip or a place that no shard of the corpus has."""
        known = self._shards.get(shard)
        if known is None or not KEY_PATTERN.fullmatch(key) or not 0 <= offset <= offset + size <= known["bytes"]:
            raise InputError(
                f"{self._storage.where(self.info['index'])}[{key}]",
                f"{size} bytes at byte {offset} of {shard}",
                f"a key of {KEY_PATTERN.pattern}, and a place in a shard that {CORPUS_FILE} names",
                "Something else wrote the index: copy the folder again from where preprocess.shard wrote it.",
            )

    def _where(self, shard: str, key: str) -> str:
        return f"{self._storage.where(self._shards[shard])}[{key}]"

    def _open(self, shard: str) -> int:
        """The file descriptor of a shard. If too many are open, the one used longest ago is closed."""
        if shard in self._files:
            self._files[shard] = self._files.pop(shard)
        else:
            while len(self._files) >= self._storage.max_open:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = self._storage.open(self._shards[shard])
        return self._files[shard]

    def __getstate__(self) -> JsonObject:
        return {**self.__dict__, "_files": {}}

    def __setstate__(self, state: JsonObject) -> None:
        self.__dict__.update(state)
        self._files = _closed_with(self)


def _closed_with(corpus: Corpus) -> dict[str, int]:
    """A new {shard: its open file descriptor}; what it holds is closed once the corpus is no longer used."""
    files: dict[str, int] = {}

    def close() -> None:
        while files:
            os.close(files.popitem()[1])

    weakref.finalize(corpus, close)
    return files
