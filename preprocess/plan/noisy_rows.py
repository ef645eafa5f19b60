"""Noise in a manifest's transcripts: counted by kind with examples, and the rows that the screening drops for it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from preprocess.audio.decode import Header
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.corpus.text import normalise_text, num_letters
from preprocess.judges.text_noise import NOISE_KINDS, noise_kinds
from preprocess.manifest.columns import Row
from preprocess.manifest.read import Manifest
from preprocess.plan.clips import ClipTable
from preprocess.plan.screening import Screening, claims_arabic

_NUM_EXAMPLES, _EXAMPLE_LETTERS = 3, 80
FASTEST_LETTERS_PER_SEC = 40.0  # more than anybody says; quick Arabic has 16
_TOO_FAST = "letters_without_time"
_WHAT = {**NOISE_KINDS, _TOO_FAST: f"more than {FASTEST_LETTERS_PER_SEC:g} letters per second of the file"}


@dataclass
class Found:
    """How many rows or clips have a kind of noise, and the first of them: "m.jsonl line 3: 'the text'"."""

    rows: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Count one more row."""
        self.rows += 1
        if len(self.examples) < _NUM_EXAMPLES:
            self.examples.append(f"{where}: {what}")


TextNoise = dict[str, Found]  # by kind, without the kinds that no row has


def take_out_noise(manifest: Manifest, screening: Screening, allow_marks: bool) -> TextNoise:
    """How many rows have each kind of noise in their transcripts, a row counted once per kind.

    Rows with a kind that the screening drops become rejected ones. allow_marks: marks for sounds are no noise.
    """
    found: defaultdict[str, Found] = defaultdict(Found)
    kept = []
    for row in manifest.rows:
        texts = _noise_of(row, screening, allow_marks)
        for kind, text in texts.items():
            found[kind].add(manifest.where(row.line), repr(text[:_EXAMPLE_LETTERS]))
        dropped = [kind for kind in texts if kind in screening.drop_text_noise]
        if dropped:
            manifest.rejected.append((row.line, _rejected(manifest.where(row.line), dropped[0], texts[dropped[0]])))
        else:
            kept.append(row)
    manifest.rows = kept
    return dict(found)


def _rejected(where: str, kind: str, text: str) -> Rejected:
    found = f"{NOISE_KINDS[kind]}: {text[:_EXAMPLE_LETTERS]!r}"
    expected = f"words that are spoken (drop_text_noise: {kind})"
    action = (
        f"Correct the transcript; if it is spoken, leave {kind} out of drop_text_noise in the --screening recipe."
    )
    return Rejected("screened", kind, where, found, expected, action)


def add_fast_clips(noise: TextNoise, table: ClipTable, headers: dict[str, Header]) -> None:
    """Count the clips whose transcript has far more letters than their file has time for."""
    fast = Found()
    for key, header in headers.items():
        letters, clip = num_letters(normalise_text(table.clips[key].text)), table.clips[key]
        if letters > FASTEST_LETTERS_PER_SEC * max(header.duration_sec, 1.0):
            fast.add(clip.source, f"{letters:,} letters in {header.duration_sec:.2f} s")
    if fast.rows:
        noise[_TOO_FAST] = fast


def noise_facts(noise: TextNoise) -> JsonObject:
    """For corpus.json: {"text_noise": {kind: {"what", "rows", "examples"}}}."""
    return {"text_noise": {kind: {"what": _WHAT[kind], **asdict(noise[kind])} for kind in sorted(noise)}}


def noise_lines(noise: TextNoise) -> Iterator[str]:
    """Lines to print: one per kind, the most frequent first, and its examples. None where there is no noise."""
    if noise:
        yield "noise in transcripts, by kind (drop_text_noise of a --screening recipe drops such rows):"
    for kind in sorted(noise, key=lambda kind: (-noise[kind].rows, kind)):
        yield f"  {kind}, {_WHAT[kind]}: {noise[kind].rows} rows"
        yield from (f"    {example}" for example in noise[kind].examples)


def _noise_of(row: Row, screening: Screening, allow_marks: bool) -> dict[str, str]:
    """{kind: the text that has it} of all that a row's sample says."""
    language = row.language or ("ar" if claims_arabic(screening, None) else None)
    return {kind: text for text in _texts(row) for kind in noise_kinds(text, language, allow_marks)}


def _texts(row: Row) -> Iterable[str]:
    spoken = [text for _, text in reversed(row.recordings) if text]
    return spoken + [text for turn in row.turns for text in turn.texts if turn.role != "system"]
