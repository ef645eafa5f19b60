"""Files with `|` between columns and no header, read by what the columns hold.

    LJ001-0001|text|normalised text      LJSpeech: wavs/ID.wav for each; one speaker, named after the folder
    id|speaker|text                      piper, VITS
    wavs/x.wav|text|speaker              F5-TTS, XTTS

A line with more or fewer fields than the others is refused: a `|` in its text would move the fields. A file with a
header (audio_file|text|speaker_name) is a table like any other.
"""

import difflib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.corpus.text import num_letters
from preprocess.manifest.column_names import OTHER_NAMES, is_known
from preprocess.manifest.delimited import find_separator, first_line, read_delimited, split_lines
from preprocess.manifest.languages import is_language
from preprocess.manifest.text_file import read_text
from preprocess.manifest.values import malformed_row

_AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".webm", ".mp4", ".aif", ".aiff", ".au"),
    *(".oga", ".spx", ".sph", ".amr", ".caf", ".w64"),
)
_FOLDERS = ("", "wavs/", "wav/", "audio/", "clips/")
_SAMPLE = 200  # rows that decide what the columns hold
_LONGEST_NAME = 40  # characters of a speaker's
# One text respells another where this share of their characters is the same, in the same order.
_ALIKE = 0.6
# The normalised text: numbers and abbreviations written out as they are spoken.
COLUMNS = {"text": "normalized_text"}
_HEADER = "Write a header as its first line, for example audio|text|speaker."


def is_without_header(path: Path, chosen: Iterable[str] = ()) -> bool:
    """Whether a file has a `|` in its first line, which is no header. chosen: columns that --columns names."""
    first = first_line(path)
    if "|" not in first:
        return False
    separator = find_separator(path)
    names = {name.strip().strip('"') for name in first.split(separator)}
    return not names & {*chosen, "audio", *OTHER_NAMES["audio"]} or not any(
        is_known(name) or name in chosen for name in names - {"audio", *OTHER_NAMES["audio"]}
    )


def find_columns(path: Path) -> tuple[str, ...]:
    """What each column holds. Raises InputError where that can't be told."""
    lines = [line.rstrip("\r\n").split("|") for line in split_lines(read_text(path)) if line.strip()]
    counts = Counter(len(fields) for fields in lines)
    num_columns = max(counts, key=lambda number: (counts[number], number))
    sample = [fields for fields in lines if len(fields) == num_columns][:_SAMPLE]
    columns = [[fields[number].strip().strip('"') for fields in sample] for number in range(num_columns)]
    audio = _find_audio(path, columns)
    others = [number for number in range(num_columns) if number != audio]
    names = _name_columns(path, {number: columns[number] for number in others})
    return tuple(names.get(number, "audio") for number in range(num_columns))


def dialect_of(columns: tuple[str, ...]) -> str:
    """What the report calls a file with these columns."""
    return "LJSpeech" if columns in (("audio", "text"), ("audio", "text", "normalized_text")) else "|".join(columns)


def read_pipes(
    path: Path, columns: tuple[str, ...], speaker: str | None = None
) -> Iterator[tuple[int, JsonObject | Rejected]]:
    """(line, record or why it has none) per line. speaker: of rows where no column names it; else the folder's."""
    find_audio = _AudioPaths(path)
    for line, record in read_delimited(path, columns):
        if isinstance(record, Rejected):
            yield line, record
            continue
        num_fields = sum(value is not None for value in record.values())
        if "normalized_text" in record and num_fields == len(columns) - 1:  # id|text
            record["normalized_text"] = record["text"]
        elif num_fields < len(columns):
            expected = "id|text|normalised text" if "normalized_text" in record else "|".join(columns)
            yield line, malformed_row("", f"{num_fields} fields", expected)
            continue
        if "speaker" not in record:
            record["speaker"] = speaker or path.absolute().parent.name
        if Path(record["audio"]).suffix.lower() not in _AUDIO_SUFFIXES and "/" not in record["audio"]:
            record["id"] = record["audio"]
        record["audio"] = find_audio(record["audio"])
        yield line, record


def _find_audio(path: Path, columns: Sequence[Sequence[str]]) -> int:
    """The number of the column with files, or with the ids of files in wavs/."""
    with_suffix = [n for n, values in enumerate(columns) if _share(values, _is_file_name) > 0.5]
    if len(with_suffix) == 1:
        return with_suffix[0]
    if with_suffix:
        raise InputError(str(path), f"{len(with_suffix)} columns with audio files", "one, or a header", _HEADER)
    is_there = _AudioPaths(path).is_there
    ids = [n for n, values in enumerate(columns) if any(map(is_there, values[:20]))]
    if ids:
        return ids[0]
    if any((path.parent / folder).is_dir() for folder in _FOLDERS[1:]):
        return 0  # each file will be missed by its name
    raise InputError(
        str(path),
        f"a first line with {len(columns) - 1} `|` and no folder {path.parent / 'wavs'}, nor names of audio files",
        "LJSpeech: lines of id|text|normalised text, and the recordings as wavs/ID.wav; or columns with a header",
        "Put the recordings there, or write the manifest as CSV with a header (audio,text,speaker).",
    )


def _name_columns(path: Path, columns: dict[int, Sequence[str]]) -> dict[int, str]:
    """{number: name} of the columns besides the audio."""
    names: dict[int, str] = {}
    left = {number: values for number, values in columns.items() if any(values)}
    names |= dict.fromkeys(columns.keys() - left.keys(), "empty")
    languages = [number for number, values in left.items() if _share(values, is_language) == 1]
    if len(languages) == 1 and len(left) > 1:
        names[languages[0]] = "language"
        del left[languages[0]]
    if len(left) == 1:
        return names | dict.fromkeys(left, "text")
    pair = _respelled(left)
    if pair and len(left) == 2:
        return names | dict(zip(pair, ("text", "normalized_text"), strict=True))
    speaker = _find_speaker(left)
    rest = sorted(left.keys() - {speaker})
    if speaker is not None and len(rest) == 1:
        return names | {speaker: "speaker", rest[0]: "text"}
    if speaker is not None and pair and rest == list(pair):
        return names | {speaker: "speaker", pair[0]: "text", pair[1]: "normalized_text"}
    found = f"{len(columns) + 1} columns without names, of which several may be the text or the speaker"
    raise InputError(str(path), found, "columns that tell which is which, or a header", _HEADER)


def _find_speaker(columns: dict[int, Sequence[str]]) -> int | None:
    """The column of a speaker: short names that repeat where the texts hardly do. None where that is not plain."""
    names = [number for number, values in columns.items() if _share(values, _may_be_name) == 1]
    plain = [n for n in names if all(_is_name_beside(columns[n], columns[other]) for other in columns if other != n)]
    return plain[0] if len(plain) == 1 else None


def _is_name_beside(names: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether values are names of speakers and those of another column are not."""
    repeats = len(set(names)) <= len(names) / 2 and len(set(texts)) >= 0.9 * len(texts)
    shorter = _letters(texts) > 3 * _letters(names)
    is_text = _share(texts, _may_be_name) < 1
    return repeats or shorter or (is_text and len(set(names)) < len(set(texts)))


def _respelled(columns: dict[int, Sequence[str]]) -> tuple[int, int] | None:
    """The two neighbouring columns of texts in which each row says the same, spelled out in the second."""
    numbers = sorted(columns)
    for first, second in itertools.pairwise(numbers):
        spelled = ([_letters_only(text) for text in columns[number]] for number in (first, second))
        pairs = [pair for pair in zip(*spelled, strict=True) if all(pair)][:30]
        alike = sum(difflib.SequenceMatcher(a=a, b=b, autojunk=False).ratio() > _ALIKE for a, b in pairs)
        if pairs and alike > len(pairs) / 2:
            return first, second
    return None


def _letters_only(text: str) -> str:
    """The letters and digits: with or without its diacritics, a word is the same."""
    return "".join(sign for sign in unicodedata.normalize("NFD", text.lower()) if sign.isalnum())


def _share(values: Sequence[str], test: Callable[[str], bool]) -> float:
    given = [value for value in values if value]
    return sum(map(test, given)) / max(len(given), 1)


def _is_file_name(value: str) -> bool:
    return value.lower().endswith(_AUDIO_SUFFIXES)


def _may_be_name(value: str) -> bool:
    return len(value) <= _LONGEST_NAME and len(value.split()) <= 3


def _letters(values: Sequence[str]) -> float:
    return sum(map(num_letters, values)) / max(len(values), 1)


class _AudioPaths:
    """Where the files of a table lie: beside it or in wavs/, perhaps without their suffix in the table."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.form: tuple[str, str] | None = None  # that of the last file that was there

    def is_there(self, value: str) -> bool:
        """Whether a value names a file."""
        return self._form_of(value) is not None

    def __call__(self, value: str) -> str:
        """The path of the file that a value names, relative to the table; a likely one where there is none."""
        value = value.strip()
        form = self._form_of(value) or (("", "") if _is_file_name(value) else ("wavs/", ".wav"))
        return form[0] + value + form[1]

    def _form_of(self, value: str) -> tuple[str, str] | None:
        suffixes = ("",) if _is_file_name(value) else _AUDIO_SUFFIXES
        forms = [(folder, suffix) for folder in _FOLDERS for suffix in suffixes]
        if self.form in forms:
            forms.insert(0, self.form)
        for folder, suffix in forms:
            if value and (self.folder / (folder + value + suffix)).is_file():
                self.form = folder, suffix
                return self.form
        return None
