"""Columns of speakers that seem to hold something else: the language, or a name per row."""

from collections.abc import Iterable, Iterator

from preprocess.manifest.columns import Row
from preprocess.manifest.languages import is_language_code

_MANY_ROWS = 20


def speaker_warnings(rows: Iterable[Row]) -> Iterator[str]:
    """A warning per doubt about what the speakers of rows are: voices decide about references and validation."""
    named = [row for row in rows if row.speaker is not None]
    speakers = {row.speaker for row in named}
    if named and all(_is_language(row) for row in named):
        some = ", ".join(sorted(speaker for speaker in speakers if speaker)[:5])
        yield f"  warning: the speakers of all {len(named)} rows are languages ({some}): if several voices speak one,"
        yield "    references are drawn from other voices; name the column of the voices (--columns speaker=...)"
    elif len(named) >= _MANY_ROWS and len(speakers) == len(named):
        yield f"  warning: each of {len(named)} rows has a speaker of its own: if the column holds ids, or files, no"
        yield "    voice has a reference; name the column of the voices (--columns speaker=...)"


def _is_language(row: Row) -> bool:
    speaker = (row.speaker or "").casefold()
    return speaker == (row.language or "").casefold() or is_language_code(speaker)
