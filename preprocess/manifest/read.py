"""Manifests in, rows out: each row is one utterance to train on, whatever dialect it was written in.

columns        JSONL, JSON, CSV, TSV or Parquet with a column each for audio, text, speaker, ... (columns.py)
ChatML         JSONL or JSON with `messages`; rows of both may stand in one file (chatml.py)
metadata.json  a folder with `samples` and text files (metadata_json.py)
LJSpeech       metadata.csv of id|text|normalised text, and wavs/ (ljspeech.py)

What was taken for what is kept and reported; what could be two things is refused. A row that can't be used is
rejected by its line; the others go on.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocess.common.errors import InputError, Rejected
from preprocess.corpus.text import normalise_text, num_letters, refuse_special_tokens
from preprocess.manifest import ljspeech
from preprocess.manifest import metadata_json as folder
from preprocess.manifest.chatml import Prompt, from_chatml
from preprocess.manifest.columns import Row, Turn, from_columns, join_some, malformed, map_columns
from preprocess.manifest.tables import SUFFIXES, read_records, separator

_METADATA = ("metadata.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")
# Hugging Face names the parts of a split train-00000-of-00003.parquet.
_PART = re.compile(r"-\d+-of-\d+$")
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")
_ELSEWHERE = (
    (
        re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:"),
        "an address",
        "Copy the recordings to this machine and name them by path, relative to --audio-root.",
    ),
    (
        re.compile(r"[A-Za-z]:[\\/]|\\\\"),
        "a path of Windows",
        "Write paths relative to the recordings' folder, with / for \\, and name that folder with --audio-root.",
    ),
    (re.compile("~/"), "a path with ~, which a shell replaces and nothing else", "Write the folder in full."),
)
_UNITS = {"metadata.json": "sample", "LJSpeech": "line"}


@dataclass(frozen=True)
class ManifestFile:
    """One file of a manifest. Its rows are numbered on from `rows_before`; a row is one `unit`: line, row, sample."""

    path: Path
    unit: str = "line"
    rows_before: int = 0
    validation: bool = False


@dataclass
class Manifest:
    """A manifest as read: usable rows, rejected ones by line, and how its words were taken.

    dialects: rows of each. mapped: rows in which a field is a column of another name. A `line` is a row's number
    through all files: in the first file, which mostly is the only one, its line.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)
    dialects: Counter = field(default_factory=Counter)
    mapped: Counter = field(default_factory=Counter)
    ignored_columns: Counter = field(default_factory=Counter)
    own_system_texts: int = 0
    files: list[ManifestFile] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.rows) + len(self.rejected)

    @property
    def sha256(self) -> str:
        """Hex sha256 of all that was read: the same rows have the same one, whatever folder they lie in."""
        digest = hashlib.sha256(repr([(file.rows_before, file.validation) for file in self.files]).encode())
        for row in self.rows:
            audios = [(a._replace(path=Path(a.path).name) if a.row else a, text) for a, text in row.recordings]
            digest.update(repr((row.line, audios, row.text, row.speaker, row.language, row.id)).encode())
            digest.update((row.system_text or "").encode())
            digest.update(repr((row.turns, row.start_index) if row.turns else "").encode())
        for line, error in self.rejected:
            digest.update(repr((line, error.record())).encode())
        return digest.hexdigest()

    def place(self, line: int) -> tuple[ManifestFile, int]:
        """The file that a row stands in, and its number there."""
        files = self.files or [ManifestFile(self.path)]
        file = next(file for file in reversed(files) if file.rows_before < line)
        return file, line - file.rows_before

    def is_validation(self, line: int) -> bool:
        return self.place(line)[0].validation

    @property
    def repeated_ids(self) -> list[str]:
        """Ids that more than one row has, sorted."""
        counts = Counter(row.id for row in self.rows if row.id is not None)
        return sorted(id_ for id_, count in counts.items() if count > 1)

    def where(self, line: int) -> str:
        file, number = self.place(line)
        return f"{file.path.name} {file.unit} {number}"


def read_manifest(
    path: Path,
    special_tokens: Iterable[str],
    system_text: str,
    columns: Mapping[str, str] | None = None,
    val_path: Path | None = None,
    keep_system: bool = False,
    as_written: bool = False,
) -> Manifest:
    """Read every row. columns: {field: column}, for fields that other columns are than their names say.

    path: a file, a folder, or a pattern (`data/train-*.parquet`). val_path: one more manifest, whose rows are the
    validation split. keep_system: ChatML rows keep the text of their system turn, where it is not `system_text`.
    as_written: they keep their turns. Raises InputError where one of them as a whole can't be read, what a column is
    can't be told, no row can be used, or a row has no turns to keep.
    """
    manifest, columns = Manifest(path), dict(columns or {})
    prompt = Prompt(tuple(special_tokens), system_text, keep_system, as_written)
    seen = set()
    for given, validation in ((path, False), (val_path, True)):
        rows_before, rejected_before = len(manifest.rows), len(manifest.rejected)
        for found in _find_files(given) if given else ():
            dialect, records, own = _open(found)
            unit = _UNITS.get(dialect, "row" if found.suffix == ".parquet" else "line")
            file = ManifestFile(found, unit, _last_line(manifest), validation)
            manifest.files.append(file)
            for number, record in records:
                if isinstance(record, dict):
                    seen |= {str(name) for name in record}
                    chosen = {f: c for f, c in own.items() if c in record} | columns
                else:
                    chosen = columns
                _add(manifest, dialect, file.rows_before + number, record, chosen, prompt)
        if given and len(manifest.rows) == rows_before:
            raise _no_rows(given, manifest.rejected[rejected_before:])
    strangers = sorted(set(columns.values()) - seen)
    if strangers:
        raise InputError(
            "--columns",
            ", ".join(strangers),
            f"columns of the manifest: {join_some(sorted(seen))}",
            "Name the columns as the manifest does.",
        )
    return manifest


def _last_line(manifest: Manifest) -> int:
    return max([row.line for row in manifest.rows[-1:]] + [line for line, _ in manifest.rejected[-1:]], default=0)


def _add(manifest: Manifest, dialect: str, line: int, record: object, chosen: dict[str, str], prompt: Prompt) -> None:
    where = manifest.where(line)
    try:
        if isinstance(record, Rejected):
            raise record.at(where)
        if not isinstance(record, dict):
            raise malformed(where, f"{type(record).__name__} {str(record)[:60]!r}")
        if "messages" in record:
            manifest.dialects["ChatML"] += 1
            row = from_chatml(line, where, record, prompt)
            has_own = row.system_text not in (None, prompt.system_text)
            manifest.own_system_texts += has_own
            if not (has_own and prompt.keep_system):
                row = replace(row, system_text=None)
        elif prompt.as_written:
            raise InputError(
                "--layout as-written",
                f"{where}: a row without messages",
                "ChatML alone: rows of columns, folders and LJSpeech are written in no layout",
                "Use --layout canonical, or leave this file out.",
            )
        else:
            manifest.dialects[dialect] += 1
            names = map_columns(tuple(map(str, record)), tuple(chosen.items()))
            manifest.mapped.update((f, c) for f, c in names.items() if f != c and record.get(c) is not None)
            manifest.ignored_columns.update(str(name) for name in record if name not in names.values())
            row = from_columns(line, where, record, names)
        _check_characters(where, row)
        _check_places(where, row)
        for text in (row.text, *(text for _, text in row.references)):
            if text or not (row.turns or text is None):
                _check_text(where, text, prompt.special_tokens)
        _check_words(where, row, prompt.special_tokens)
        manifest.rows.append(row)
    except Rejected as rejected:
        manifest.rejected.append((line, rejected))


def _no_rows(path: Path, rejected: list[tuple[int, Rejected]]) -> InputError:
    first = str(rejected[0][1]) if rejected else "the file has no rows"
    return InputError(
        str(path),
        f"no row that can be used, of {len(rejected)}",
        "at least one utterance",
        f"The first problem: {first}",
    )


def _open(path: Path) -> tuple[str, Iterator[tuple[int, object]], Mapping[str, str]]:
    """(dialect, its records, the columns that this dialect has for fields)."""
    suffix = path.suffix.lower()
    if suffix == ".json" and folder.read_samples(path) is not None:
        return "metadata.json", folder.read_folder(path), folder.COLUMNS
    if suffix == ".csv" and ljspeech.is_ljspeech(path):
        return "LJSpeech", ljspeech.read_ljspeech(path), ljspeech.COLUMNS
    sign = separator(path) if suffix == ".csv" else ","
    dialect = "columns" if sign == "," else f"columns separated by {'tabs' if sign == chr(9) else sign}"
    return dialect, read_records(path), {}


def _find_files(path: Path) -> list[Path]:
    """The manifest files that a file, a folder or a pattern stands for, sorted by name."""
    if path.is_dir():
        found = [path / name for name in _METADATA if (path / name).is_file()]
        if not found:
            found = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
            splits = sorted({_PART.sub("", file.stem) for file in found if _PART.search(file.stem)})
            if len(splits) > 1:
                raise InputError(
                    str(path),
                    f"Parquet files of {len(splits)} splits: {', '.join(splits)}",
                    "the rows to train on",
                    f"Name one by a pattern, for example --manifest '{found[0].parent}/{splits[-1]}-*.parquet'",
                )
        elif len(found) > 1:
            raise InputError(
                str(path),
                f"{len(found)} manifests: {', '.join(file.name for file in found)}",
                "one",
                f"Name it, for example --manifest {found[0]}",
            )
    elif "*" in path.name:
        found = sorted(path.parent.glob(path.name))
    else:
        found = [path]
    if not found or not all(file.is_file() and file.suffix.lower() in SUFFIXES for file in found):
        wrong = next((file for file in found if file.is_file()), None)
        what = f"no {', no '.join(_METADATA)} and no Parquet files" if path.is_dir() else "no such file"
        raise InputError(
            str(path),
            f"a {wrong.suffix or 'nameless'} file" if wrong else what,
            "a manifest: .jsonl, .json, .csv, .tsv or .parquet, or a folder with metadata.json, metadata.csv, "
            "metadata.jsonl or Parquet files",
            "Name it with --manifest.",
        )
    return found


def _check_characters(where: str, row: Row) -> None:
    """Raise Rejected for bytes that were no UTF-8 (read as U+FFFD) and halves of a JSON escape: both are lost."""
    named = [
        row.speaker,
        row.language,
        row.id,
        row.system_text,
        *(text for turn in row.turns for text in _texts(turn)),
        *(part for audio, text in row.recordings for part in (audio.path, text)),
    ]
    broken = next((value for value in named if value and _BROKEN.search(value)), None)
    if broken:
        raise Rejected(
            "failed",
            "broken_characters",
            where,
            f"{broken!r:.80}, with characters that were lost",
            "text in UTF-8, whole",
            "Save the manifest as UTF-8 (Excel: CSV UTF-8), or correct the row.",
        )


def _check_places(where: str, row: Row) -> None:
    """Raise Rejected for audio that is named as only a browser, a shell or Windows finds it."""
    for audio, _ in row.recordings:
        kind, action = next(((k, a) for pattern, k, a in _ELSEWHERE if pattern.match(audio.path)), (None, None))
        if kind:
            found, expected = f"{kind}: {audio.path:.80}", "a path on this machine"
            raise Rejected("failed", "audio_elsewhere", where, found, expected, action)


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
    refuse_special_tokens(where, "transcript", read, special_tokens)


def _check_words(where: str, row: Row, special_tokens: tuple[str, ...]) -> None:
    """Raise Rejected for a special token in the system text that a row has of its own, or in turns that it keeps."""
    system, *turns = row.turns or [("system", [("text", row.system_text or "")])]
    for text in _texts(system):
        refuse_special_tokens(where, "system text", text, special_tokens)
    for text in (text for turn in turns for text in _texts(turn)):
        refuse_special_tokens(where, "text", normalise_text(text), special_tokens)


def _texts(turn: Turn) -> list[str]:
    return [content for kind, content in turn[1] if kind == "text"]
