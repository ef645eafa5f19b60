"""Read a manifest, in whichever dialect it is written: each row is one utterance to train on.

columns        JSONL, JSON, CSV, TSV or Parquet with columns for audio, text, speaker and so on (columns.py)
ChatML         JSONL or JSON with `messages`; rows of both may stand in one file (chatml.py)
metadata.json  a folder with `samples` and text files (metadata_json.py)
|              LJSpeech, piper, XTTS, F5, VITS: read by what their columns hold (pipe_separated.py)
Kaldi          a folder with wav.scp, text, utt2spk and segments (kaldi.py)
lhotse         cuts as JSONL (lhotse.py)

How the files were understood is reported; what could be understood in two ways is refused. A row that can't be used
is rejected under its line number, and the others are read.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError, Rejected, costs_its_item, join_some
from preprocess.corpus.text import normalise_text, num_letters, refuse_special_tokens
from preprocess.manifest.chatml import PromptSettings, none_words_of, row_from_chatml
from preprocess.manifest.columns import Row, Turn, row_from_columns
from preprocess.manifest.dialects import find_files, open_dialect
from preprocess.manifest.field_names import map_columns, unused_columns
from preprocess.manifest.values import is_none_word, malformed_row

_BROKEN = re.compile("[\ufffd\ud800-\udfff]")
_ELSEWHERE = (
    (
        re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:"),
        "an address",
        "Copy the recordings to this machine and name them by path, relative to --audio-root.",
    ),
    (
        re.compile(r"[A-Za-z]:[\\/]|\\\\"),
        "a Windows path",
        "Write paths relative to the recordings' folder, with / for \\, and name that folder with --audio-root.",
    ),
    (re.compile("~/"), "a path with ~, which only a shell replaces", "Write the folder in full."),
)


@dataclass(frozen=True)
class ManifestFile:
    """One file of a manifest; `unit` is what it calls a row: line, row or sample.

    rows_before: the number of the last row of the files before it.
    """

    path: Path
    unit: str = "line"
    rows_before: int = 0
    validation: bool = False


@dataclass
class Manifest:
    """A manifest as read: usable rows, rejected ones as (line, why), and how its files were understood.

    dialects: {dialect: rows}. mapped: {(field, column): rows in which the field's column has another name}.
    ignored_columns: {column: rows}. own_system_texts: rows whose system text is not --system-text.
    audio_marks: how many texts of references lost their <|AUDIO|> at the end.
    none_words: {column: rows in which it says "nan", "None"..., which is read as a missing value}.
    given_speakers: {speaker: rows that name none, and get the one of --speaker or of their folder}.
    `line` counts rows through all files; in the first file, usually the only one, it is the line.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)
    dialects: Counter[str] = field(default_factory=Counter)
    mapped: Counter[tuple[str, str]] = field(default_factory=Counter)
    ignored_columns: Counter[str] = field(default_factory=Counter)
    own_system_texts: int = 0
    audio_marks: int = 0
    none_words: Counter[str] = field(default_factory=Counter)
    given_speakers: Counter[str] = field(default_factory=Counter)
    files: list[ManifestFile] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Usable and rejected rows."""
        return len(self.rows) + len(self.rejected)

    @property
    def sha256(self) -> str:
        """Hex sha256 of all that was read. The folder of the manifest does not matter."""
        digest = hashlib.sha256(repr([(file.rows_before, file.validation) for file in self.files]).encode())
        for row in self.rows:
            audios = [(a._replace(path=Path(a.path).name) if a.row else a, text) for a, text in row.recordings]
            digest.update(repr((row.line, audios, row.text, row.speaker, row.language, row.id)).encode())
            digest.update((row.system_text or "").encode())
            turns = tuple((turn.role, tuple(zip(turn.kinds, turn.parts, strict=True))) for turn in row.turns)
            digest.update(repr((turns, row.start_index) if turns else "").encode())
        for line, error in self.rejected:
            digest.update(repr((line, error.record())).encode())
        return digest.hexdigest()

    def place(self, line: int) -> tuple[ManifestFile, int]:
        """The file of a row, and the row's number in it."""
        files = self.files or [ManifestFile(self.path)]
        file = next(file for file in reversed(files) if file.rows_before < line)
        return file, line - file.rows_before

    def is_validation(self, line: int) -> bool:
        """Whether a row is from --val-manifest."""
        return self.place(line)[0].validation

    @property
    def repeated_ids(self) -> list[str]:
        """Ids of more than one row, sorted."""
        counts = Counter(row.id for row in self.rows if row.id is not None)
        return sorted(id_ for id_, count in counts.items() if count > 1)

    def where(self, line: int) -> str:
        """A row's name in error texts: "train.jsonl line 7"."""
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
    speaker: str | None = None,
    audio_root: Path | None = None,
    allow_marks: bool = False,
) -> Manifest:
    """The manifest with all its rows, and those of `val_path` as the validation split.

    path, val_path: a file, a folder, or a pattern (`data/train-*.parquet`). columns: {field: column} as --columns
    gives it. keep_system: ChatML rows keep a system text of their own that differs from `system_text`. as_written:
    they keep their turns. speaker: that of the rows that name none. audio_root: where recordings lie that are named
    by their id; None for the folder of the file that names them. allow_marks: texts may have marks for sounds.

    Raises InputError for a manifest without a usable row, a file that can't be read, a column that could be several
    fields, a column of --columns that no row has, and, with as_written, a row without turns.
    """
    manifest, columns = Manifest(path), dict(columns or {})
    prompt = PromptSettings(tuple(special_tokens), system_text, keep_system, as_written, allow_marks)
    seen: set[str] = set()
    for given, validation in ((path, False), (val_path, True)):
        rows_before, rejected_before = len(manifest.rows), len(manifest.rejected)
        for found in find_files(given) if given else ():
            dialect = open_dialect(found, audio_root or found.parent, columns)
            file = ManifestFile(found, dialect.unit, _last_line(manifest), validation)
            manifest.files.append(file)
            for number, record in dialect.records:
                names = set(record) if isinstance(record, dict) else set()
                seen |= names
                chosen = {f: c for f, c in dialect.columns.items() if c in names} | columns
                voice = speaker or dialect.voice
                _add_record(manifest, dialect.name, file.rows_before + number, record, chosen, prompt, voice)
        if given and len(manifest.rows) == rows_before:
            raise _no_rows(given, manifest.rejected[rejected_before:])
    strangers = sorted(set(columns.values()) - seen)
    if strangers:
        expected = f"columns of the manifest: {join_some(sorted(seen))}"
        raise InputError("--columns", ", ".join(strangers), expected, "Name the columns as the manifest does.")
    return manifest


def _last_line(manifest: Manifest) -> int:
    return max([row.line for row in manifest.rows[-1:]] + [line for line, _ in manifest.rejected[-1:]], default=0)


def _add_record(
    manifest: Manifest,
    dialect: str,
    line: int,
    record: object,
    chosen: dict[str, str],
    prompt: PromptSettings,
    voice: str | None,
) -> None:
    """Add a record to the manifest's usable or rejected rows, and count how it was understood.

    voice: the speaker of a row that names none.
    """
    where = manifest.where(line)
    try:
        with costs_its_item(where):
            if isinstance(record, Rejected):
                raise record.at(where)
            if not isinstance(record, dict):
                raise malformed_row(where, f"{type(record).__name__} {str(record)[:60]!r}")
            if "messages" in record:
                manifest.dialects["ChatML"] += 1
                row, num_marks = row_from_chatml(line, where, record, prompt)
                manifest.audio_marks += num_marks
                manifest.none_words.update(none_words_of(record))
                has_own = row.system_text not in (None, prompt.system_text)
                manifest.own_system_texts += has_own
                if not (has_own and prompt.keep_system):
                    row = replace(row, system_text=None)
            elif prompt.as_written:
                raise InputError(
                    "--layout as-written",
                    f"{where}: a row without messages",
                    "ChatML alone: rows of other dialects have no turns to keep",
                    "Use --layout canonical, or leave this file out.",
                )
            else:
                manifest.dialects[dialect] += 1
                embedded = any(isinstance(value, Recording) for value in record.values())
                columns = map_columns(tuple(record), tuple(chosen.items()), embedded)
                manifest.mapped.update((f, c) for f, c in columns.items() if f != c and record.get(c) is not None)
                manifest.none_words.update(
                    c for f, c in columns.items() if f != "text" and is_none_word(record.get(c))
                )
                manifest.ignored_columns.update(unused_columns(record, columns))
                row = row_from_columns(line, where, record, columns)
            _check_characters(where, row)
            _check_paths(where, row)
            for _, text in row.recordings:
                if text is not None and (text or not row.turns):
                    _check_transcript(where, text, prompt)
            _check_special_tokens(where, row, prompt)
            if voice and row.speaker is None:
                row = replace(row, speaker=voice)
                manifest.given_speakers[voice] += 1
            manifest.rows.append(row)
    except Rejected as rejected:
        manifest.rejected.append((line, rejected))


def _no_rows(path: Path, rejected: list[tuple[int, Rejected]]) -> InputError:
    first = str(rejected[0][1]) if rejected else "the file has no rows"
    found = f"no row that can be used, of {len(rejected)}"
    return InputError(str(path), found, "at least one utterance", f"The first problem: {first}")


def _check_characters(where: str, row: Row) -> None:
    """Raise Rejected for lost characters: invalid UTF-8, read as U+FFFD, or half of a surrogate pair in JSON."""
    values = [
        row.speaker,
        row.language,
        row.id,
        row.system_text,
        *(text for turn in row.turns for text in turn.texts),
        *(value for audio, text in row.recordings for value in (audio.path, text)),
    ]
    broken = next((value for value in values if value and _BROKEN.search(value)), None)
    if broken:
        found, expected = f"{broken!r:.80}, with characters that were lost", "complete text in UTF-8"
        action = "Save the manifest as UTF-8 (Excel: CSV UTF-8), or correct the row."
        raise Rejected("failed", "broken_characters", where, found, expected, action)


def _check_paths(where: str, row: Row) -> None:
    """Raise Rejected for an audio path that only a browser, a shell or Windows understands."""
    for audio, _ in row.recordings:
        for pattern, kind, action in _ELSEWHERE:
            if pattern.match(audio.path):
                found = f"{kind}: {audio.path:.80}"
                raise Rejected("failed", "audio_elsewhere", where, found, "a path on this machine", action)


def _check_transcript(where: str, text: str, prompt: PromptSettings) -> None:
    normalised = normalise_text(text)  # as the model reads it: an invisible character could hide a special token
    refuse_special_tokens(where, "transcript", normalised, prompt.special_tokens, prompt.allow_marks)
    if not num_letters(normalised):
        found, expected = f"the transcript {text!r}", "the words that are spoken"
        action = "Transcribe the audio, or remove the row."
        raise Rejected("screened", "empty_transcript", where, found, expected, action)


def _check_special_tokens(where: str, row: Row, prompt: PromptSettings) -> None:
    """Raise Rejected for a special token in the row's own system text or in the turns that it keeps."""
    system, *turns = row.turns or [Turn("system", (row.system_text or "",))]
    for text in system.texts:
        refuse_special_tokens(where, "system text", text, prompt.special_tokens)
    for text in (text for turn in turns for text in turn.texts):
        refuse_special_tokens(where, "text", normalise_text(text), prompt.special_tokens, prompt.allow_marks)
