"""Manifests in, rows out: each row is one utterance to train on, whatever dialect it was written in.

Two dialects, told apart row by row and reported:

columns  JSONL, JSON, CSV, TSV or Parquet with `audio`, `text` and, where there are some, `speaker`, `language`,
         `reference_audio`, `reference_text`, `id`
ChatML   JSONL or JSON with `messages`, in the voice-cloning shape (user: reference text, reference audio, an
         instruction; assistant: text, audio) or already in the canonical one (see preprocess.layout)

A row that can't be used is rejected by its line; the others go on.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from preprocess.errors import InputError, Rejected
from preprocess.layout import normalise_text, num_letters

COLUMNS = ("audio", "text", "speaker", "language", "reference_audio", "reference_text", "id")
_SHAPE = (
    "user: reference text, reference audio, instruction / assistant: text, audio; "
    "or user: text / assistant: audio, once a reference and once for the target"
)


@dataclass(frozen=True)
class Row:
    """One utterance. `references` are (audio, transcript or None); with none of them, one is drawn in training."""

    line: int
    audio: str
    text: str
    speaker: str | None = None
    language: str | None = None
    id: str | None = None
    references: tuple[tuple[str, str | None], ...] = ()


@dataclass
class Manifest:
    """A manifest as read: usable rows, rejected ones by line, rows of each dialect, and what was not used."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)
    dialects: Counter = field(default_factory=Counter)
    ignored_columns: Counter = field(default_factory=Counter)
    own_system_texts: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.rows) + len(self.rejected)

    def where(self, line: int) -> str:
        return f"{self.path.name} {'row' if self.path.suffix == '.parquet' else 'line'} {line}"


def read_manifest(path: Path, special_tokens: Iterable[str], system_text: str) -> Manifest:
    """Read every row. Raises InputError where the file as a whole can't be read or no row can be used."""
    manifest, special_tokens = Manifest(path), tuple(special_tokens)
    for line, record in _records(path):
        where = manifest.where(line)
        try:
            if isinstance(record, Rejected):
                raise record.at(where)
            if not isinstance(record, dict):
                raise _malformed(where, f"{type(record).__name__} {str(record)[:60]!r}")
            if "messages" in record:
                manifest.dialects["ChatML"] += 1
                row = _from_chatml(line, where, record)
                system = [m.get("content") for m in record["messages"] if m.get("role") == "system"]
                manifest.own_system_texts += system not in ([], [system_text])
            else:
                manifest.dialects["columns"] += 1
                manifest.ignored_columns.update(str(name) for name in record if name not in COLUMNS)
                row = _from_columns(line, where, record)
            for text in (row.text, *(text for _, text in row.references if text is not None)):
                _check_text(where, text, special_tokens)
            manifest.rows.append(row)
        except Rejected as rejected:
            manifest.rejected.append((line, rejected))
    if not manifest.rows:
        first = str(manifest.rejected[0][1]) if manifest.rejected else "the file has no rows"
        raise InputError(
            str(path),
            f"no row that can be used, of {manifest.num_rows}",
            "at least one utterance",
            f"The first problem: {first}",
        )
    return manifest


def _check_text(where: str, text: str, special_tokens: tuple[str, ...]) -> None:
    read = normalise_text(text)  # what the model sees: an invisible character in `text` could hide a special token
    if not num_letters(read):
        raise Rejected(
            "screened",
            "empty_transcript",
            where,
            f"the transcript {text!r}",
            "the words that are spoken",
            "Transcribe the audio, or remove the row.",
        )
    special = next((token for token in special_tokens if token in read), None)
    if special:
        raise Rejected(
            "failed",
            "special_token",
            where,
            f"the special token {special} in the transcript",
            "spoken words alone: a special token would change the prompt's structure",
            "Remove it from the text.",
        )


def _from_columns(line: int, where: str, record: dict) -> Row:
    values = {}
    for name in COLUMNS:
        value = record.get(name)
        if isinstance(value, int | float) and name in ("speaker", "id"):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise _malformed(where, f"{name} = {json.dumps(value)[:60]}", f"{name} as a string")
        values[name] = value if name == "text" else (value or None)
    if None in record:
        raise _malformed(where, f"{len(record[None])} more values than there are columns", "one value a column")
    if not values["audio"] or values["text"] is None:
        missing = " and ".join(name for name in ("audio", "text") if not values[name])
        raise Rejected(
            "failed",
            "missing_column",
            where,
            f"no {missing} among the columns {', '.join(map(str, record)) or '(none)'}",
            f"the columns audio and text (all known ones: {', '.join(COLUMNS)})",
            "Rename the columns, or fill in the row.",
        )
    if values["reference_text"] and not values["reference_audio"]:
        raise _malformed(where, "reference_text without reference_audio", "both, or neither")
    reference = values.pop("reference_audio"), values.pop("reference_text")
    return Row(line, references=(reference,) if reference[0] else (), **values)


def _from_chatml(line: int, where: str, record: dict) -> Row:
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _malformed(where, f"messages = {json.dumps(messages, ensure_ascii=False)[:60]}", "a list of turns")
    if any(message.get("recipient") for message in messages):
        raise Rejected(
            "failed",
            "recipient",
            where,
            "a turn with a recipient",
            "turns that speak to the listener: this layout has no recipient",
            "Remove the row, or the recipient if the turn is plain speech.",
        )
    attached = iter(record.get("audios") or [])
    turns = [(message.get("role"), list(_parts(where, message.get("content"), attached))) for message in messages]
    if turns and turns[0][0] == "system":
        turns = turns[1:]
    shape = [(role, [kind for kind, _ in parts]) for role, parts in turns]
    if shape == [("user", ["text", "audio", "text"]), ("assistant", ["text", "audio"])]:
        (_, ((_, reference_text), (_, reference_audio), _)), (_, ((_, text), (_, audio))) = turns
        references = ((reference_audio, reference_text),)
    elif shape and shape == [("user", ["text"]), ("assistant", ["audio"])] * (len(shape) // 2):
        contents = [parts[0][1] for _, parts in turns]
        *references, (audio, text) = zip(contents[1::2], contents[0::2], strict=True)
    else:
        raise Rejected(
            "failed",
            "not_voice_cloning",
            where,
            " / ".join(f"{role}: {', '.join(kinds) or 'nothing'}" for role, kinds in shape) or "no turns",
            _SHAPE,
            "Rewrite the row in one of these shapes, or remove it.",
        )
    misc = record.get("misc") if isinstance(record.get("misc"), dict) else {}
    about = {name: record.get(name) or misc.get(name) for name in ("speaker", "language", "id")}
    about = {name: None if value is None else str(value) for name, value in about.items()}
    return Row(line, audio, text, references=tuple(references), **about)


def _parts(where: str, content: object, attached: Iterator[object]) -> Iterator[tuple[str, str]]:
    """("text", words) and ("audio", path) of a turn; `<audio>` in a string takes the next attached file."""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise _malformed(where, f"content {json.dumps(part)[:60]}", "text, or parts of text and audio")
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            for number, text in enumerate(part["text"].split("<audio>")):
                if number:
                    yield "audio", _path(where, next(attached, None))
                if text or "<audio>" not in part["text"]:
                    yield "text", text
        elif part.get("type") == "audio":
            if part.get("offset"):
                raise _malformed(where, f"audio from offset {part['offset']} s", "whole files")
            yield "audio", _path(where, part.get("audio_url") or part.get("audio"))
        else:
            raise _malformed(where, f"a part of type {part.get('type')!r}", "parts of type text or audio")


def _path(where: str, value: object) -> str:
    if not isinstance(value, str) or value in ("", "placeholder"):
        raise _malformed(where, "audio without a path", "audio_url, or as many `audios` as <audio> marks")
    return value


def _malformed(where: str, found: str, expected: str = "one JSON object a row") -> Rejected:
    return Rejected("failed", "malformed_row", where, found, expected, "Correct the row, or remove it.")


def _records(path: Path) -> Iterator[tuple[int, object]]:
    """(line or row number from 1, record or why it can't be read) of each row."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        raise InputError(
            str(path),
            "no such file" if not path.is_file() else f"a {suffix or 'nameless'} file",
            "a manifest: .jsonl, .json, .csv, .tsv or .parquet",
            "Name it with --manifest.",
        )
    if suffix == ".parquet":
        batches = pq.ParquetFile(path).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    elif suffix in (".csv", ".tsv"):
        yield from _csv_records(path, suffix)
    else:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        if data.lstrip()[:1] == b"[":
            yield from _json_array(path, data.decode(errors="replace"))
        else:
            yield from _json_lines(data)


def _csv_records(path: Path, suffix: str) -> Iterator[tuple[int, dict]]:
    # Quotes mean nothing in TSV: a stray one must not swallow the lines after it.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {"strict": True}
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""), **dialect)
    line = 2
    try:
        for record in reader:
            yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, _malformed("", f"broken CSV, from here to the end ({error})", "quoted fields that end")


def _json_lines(data: bytes) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        shown = line[:60].decode(errors="replace")
        return Rejected(
            "failed",
            "malformed_json",
            "",
            f"{shown!r}, which is not JSON ({error})",
            "one JSON object a line",
            "Correct the line, or remove it.",
        )


def _json_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """Elements of a JSON array with the line each starts on. After a broken one nothing can be told apart."""
    decoder, position, line = json.JSONDecoder(), text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = position
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        line += text.count("\n", start, position)
        if position < len(text) and text[position] == "]":
            return
        try:
            record, end = decoder.raw_decode(text, position)
        except ValueError as error:
            raise InputError(
                f"{path} line {line}",
                f"broken JSON ({error})",
                "an element of the array that starts the file",
                "Correct it: what follows in the array can't be read without it.",
            ) from error
        yield line, record
        line += text.count("\n", position, end)
        position = end
