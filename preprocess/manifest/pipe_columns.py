"""What the columns of a file with `|` hold, seen from all of its lines: nothing is read by its position.

Corpora write id|text, id|text|normalised text (LJSpeech), id|speaker|text (piper), path|text|speaker (XTTS, F5),
path|speaker|language|text (GPT-SoVITS), path|speaker|text (VITS). A speaker is short and comes again, a language is a
known code, the second form of a text is a respelling of the first.
"""

import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from preprocess.common.errors import InputError
from preprocess.manifest.audio_places import at_place, find_place, has_audio_suffix
from preprocess.manifest.languages import is_language_code

_MOST_WORDS, _MOST_LETTERS = 4, 64  # of a speaker's name
_LONGEST_WORD = 16  # letters; Chinese and Thai sentences have no blanks
_FEW_LINES = 8
_COMPARED = 200


class Layout(NamedTuple):
    """roles: of each column, "" for one that holds nothing. place: how a cell of `audio` becomes a path."""

    roles: tuple[str, ...]
    place: str

    @property
    def is_ljspeech(self) -> bool:
        """Whether it is id|text or id|text|normalised text."""
        return self.roles in (("id", "text"), ("id", "text", "normalized_text"))


def find_layout(path: Path, root: Path, rows: Sequence[Sequence[str]]) -> Layout:
    """The layout of rows that all have the same number of fields. Raises InputError where two are possible."""
    columns = [[value.strip() for value in column] for column in zip(*rows, strict=True)]
    audio, place = _find_audio(path, root, columns)
    roles = ["" for _ in columns]
    roles[audio] = "audio" if has_audio_suffix(columns[audio][0]) or place == "{}" else "id"
    others = [n for n, column in enumerate(columns) if n != audio and any(column)]
    if len(others) > 1:
        paths = [at_place(place, name) for name in columns[audio]]
        same = [n for n in others if _is_id(columns[n], paths)]
        if roles[audio] == "audio" and len(same) == 1:
            roles[same[0]] = "id"
            others.remove(same[0])
    texts = list(others)
    if len(others) > 2 or (len(others) == 2 and not _are_respelled(*(columns[n] for n in others))):
        languages = [n for n in others if all(map(is_language_code, columns[n])) and _come_again(columns[n])]
        names = [n for n in others if n not in languages and _are_names(columns[n])]
        for role, found in (("language", languages), ("speaker", names)):
            if len(found) > 1:
                raise _ambiguous(path, rows, f"{len(found)} columns that may be the {role}")
            if found:
                roles[found[0]] = role
                texts.remove(found[0])
    if len(texts) == 2 and _are_respelled(columns[texts[0]], columns[texts[1]]):
        roles[texts.pop()] = "normalized_text"
    if len(texts) != 1:
        what = f"{len(texts)} columns that may be the text, none a respelling of another" if texts else "no text"
        raise _ambiguous(path, rows, what)
    if len(others) > 1 and "normalized_text" not in roles and all(map(_is_word, columns[texts[0]])):
        raise _ambiguous(path, rows, "single words where the text should be")
    roles[texts[0]] = "text"
    return Layout(tuple(roles), place)


def _find_audio(path: Path, root: Path, columns: list[list[str]]) -> tuple[int, str]:
    """(column that names the recordings, how its cells become paths)."""
    places = {n: find_place(root, column) for n, column in enumerate(columns) if all(column)}
    found = {n: place for n, place in places.items() if place}
    named = [n for n, column in enumerate(columns) if all(map(has_audio_suffix, column))]
    if len(named) > 1:
        raise _ambiguous(path, list(zip(*columns, strict=True)), f"{len(named)} columns of audio files")
    if named:
        return named[0], found.get(named[0], "{}")
    if len(found) > 1:  # speakers called 1, 2 and 3 beside recordings called 1 to 100
        most = max(len(set(columns[n])) for n in found)
        found = {n: place for n, place in found.items() if len(set(columns[n])) == most}
    if len(found) == 1:
        return next(iter(found.items()))
    if not found and (root / "wavs").is_dir() and len(set(columns[0])) == len(columns[0]) and all(columns[0]):
        return 0, "wavs/{}.wav"  # the rows will name what is missing
    what = "no column that names recordings" if not found else f"{len(found)} columns that may name them"
    raise InputError(
        str(path),
        f"lines with `|` such as {'|'.join(column[0] for column in columns)!r:.80}, and {what}, looked for in {root}",
        "recordings as wavs/ID.wav for lines such as id|text|normalised text, or their paths in the lines",
        "Put the recordings there, name their folder with --audio-root, or write the manifest as CSV with a header "
        "(audio,text,speaker).",
    )


def _ambiguous(path: Path, rows: Sequence[Sequence[str]], what: str) -> InputError:
    return InputError(
        str(path),
        f"lines with `|` such as {'|'.join(rows[0])!r:.80}, with {what}",
        "columns whose content shows what they are",
        "Write their names into the first line (audio|text|speaker), or number them: "
        "--columns audio=1,text=2,speaker=3",
    )


def _is_id(column: list[str], paths: list[str]) -> bool:
    return all(value and Path(path).stem == value for value, path in zip(column, paths, strict=True))


def _are_names(column: list[str]) -> bool:
    """Whether values are short and come again, as speakers do."""
    short = all(len(value) <= _MOST_LETTERS and len(value.split()) <= _MOST_WORDS for value in column)
    return short and _come_again(column)


def _come_again(column: list[str]) -> bool:
    num_different = len(set(column))
    return 2 * num_different <= len(column) or num_different < len(column) < _FEW_LINES


def _is_word(text: str) -> bool:
    return len(text.split()) < 2 and len(text) <= _LONGEST_WORD


def _are_respelled(first: list[str], second: list[str]) -> bool:
    """Whether most texts of the second column are those of the first, written in another way."""
    pairs = [pair for pair in zip(first, second, strict=True) if all(pair)]
    chosen = pairs[:: max(len(pairs) // _COMPARED, 1)]
    return 2 * sum(_is_respelled(one, other) for one, other in chosen) > len(chosen)


def _is_respelled(one: str, other: str) -> bool:
    one, other = _plain(one), _plain(other)
    shared = len(set(one.split()) & set(other.split()))
    fewest = min(len(set(one.split())), len(set(other.split())))
    return 2 * shared >= fewest > 0 or SequenceMatcher(None, one[:200], other[:200], autojunk=False).ratio() > 0.6


def _plain(text: str) -> str:
    """Letters, digits and blanks of a text, without case and diacritics."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(s for s in decomposed if unicodedata.category(s)[0] in "LNZ")
