"""The ChatML dialect: `messages` that clone a voice, read by what they have (voice_cloning.py).

--layout as-written takes conversations of any shape: their turns are kept, and trained as Boson trains them.
"""

from dataclasses import dataclass, replace

from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.columns import Row, Turn
from preprocess.manifest.conversation import describe_parts, describe_shape, read_turns, without_audio_marks
from preprocess.manifest.values import is_missing, is_none_word, malformed_row, read_name
from preprocess.manifest.voice_cloning import KnownTexts, Lacking, read_spoken

_SHAPE = (
    "user: reference text, reference audio / assistant: text, audio, with or without an instruction after them; "
    "or user: text / assistant: audio, once a reference and once for the target"
)
# As metadata.json and the pipelines built on it call them.
_REFERENCE_TEXTS = ("ref_transcript", "reference_text", "ref_text")
_TARGET_TEXTS = ("target_text", "target_transcript")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class PromptSettings:
    """Settings of the prompt on which rows depend: the flags of preprocess.shard and the model's special tokens."""

    special_tokens: tuple[str, ...]
    system_text: str
    keep_system: bool = False
    as_written: bool = False
    allow_marks: bool = False


def row_from_chatml(line: int, where: str, record: JsonObject, prompt: PromptSettings) -> tuple[Row, int]:
    """(Row of a conversation with the text of its system turn, number of audio marks that came off its texts).

    Raises Rejected where it can't be one.
    """
    turns, num_marks = without_audio_marks(read_turns(where, record))
    if prompt.as_written:
        row = _row_as_written(line, where, turns, record.get("start_index"), prompt)
    else:
        row = _voice_cloning_row(line, where, turns, _known_texts(record), prompt.keep_system)
    system_text = " ".join(turns[0].texts) if turns[0].role == "system" else ""
    row = replace(
        row,
        speaker=_read_name(where, record, "speaker"),
        language=_read_name(where, record, "language"),
        id=_read_name(where, record, "id"),
        system_text=system_text or None,
    )
    return row, num_marks


def _read_name(where: str, record: JsonObject, name: str) -> str | None:
    """A value of the row itself, else of its `misc`."""
    misc = record.get("misc")
    if is_missing(record.get(name)) and isinstance(misc, dict):
        return read_name(where, misc, name)
    return read_name(where, record, name)


def none_words_of(record: JsonObject) -> list[str]:
    """The names of a row that say "nan", "None" or the like."""
    misc = record.get("misc")
    names = ("speaker", "language", "id")
    own = [name for name in names if is_none_word(record.get(name))]
    return own + [name for name in names if isinstance(misc, dict) and is_none_word(misc.get(name))]


def _known_texts(record: JsonObject) -> KnownTexts:
    """Transcripts that a row has beside its conversation: in itself or in its `misc`."""
    misc = record.get("misc")
    places = [record, *([misc] if isinstance(misc, dict) else [])]
    found = []
    for names in (_REFERENCE_TEXTS, _TARGET_TEXTS):
        texts = [place[name] for name in names for place in places if isinstance(place.get(name), str)]
        found.append(next((text for text in texts if not is_missing(text)), None))
    return KnownTexts(*found)


def _voice_cloning_row(line: int, where: str, turns: tuple[Turn, ...], known: KnownTexts, keep_system: bool) -> Row:
    if turns and turns[0].role == "system":
        if keep_system and turns[0].kinds != ["text"]:
            found = f"a system turn of {describe_parts(turns[0])}"
            expected = "one text, since --keep-system keeps it"
            action = "Write it as one text, or leave out --keep-system."
            raise Rejected("failed", "system_turn", where, found, expected, action)
        turns = turns[1:]
    try:
        *references, (audio, text) = read_spoken(turns, known)
    except Lacking as lacking:
        found = f"{describe_shape(turns)}: {lacking}"
        action = "Rewrite the row in one of these shapes, or remove it."
        raise Rejected("failed", "not_voice_cloning", where, found, _SHAPE, action) from lacking
    return Row(line, audio, text, references=tuple(references))


def _row_as_written(
    line: int, where: str, turns: tuple[Turn, ...], start_index: object, prompt: PromptSettings
) -> Row:
    """The Row of a conversation that is kept: its target is the last audio that Boson trains.

    Boson trains the assistant's turns from `start_index` on; without one, only the last of them.
    """
    strangers = [turn.role for turn in turns if turn.role not in _ROLES]
    if strangers:
        found = f"a turn of the role {', '.join(strangers)}"
        raise Rejected("failed", "unknown_role", where, found, ", ".join(_ROLES), "Remove the row, or the turn.")
    if start_index is None:
        start_index = max((n for n, turn in enumerate(turns) if turn.role == "assistant"), default=0)
    if type(start_index) is not int or not 0 <= start_index < max(len(turns), 1):
        raise malformed_row(where, f"start_index {start_index!r}", f"the number of a turn, 0 to {len(turns) - 1}")
    turn_of_audio = [n for n, turn in enumerate(turns) for kind in turn.kinds if kind == "audio"]
    trained = [audio for audio, n in enumerate(turn_of_audio) if turns[n].role == "assistant" and n >= start_index]
    if not trained:
        raise Rejected(
            "failed",
            "no_target",
            where,
            f"{describe_shape(turns)}, trained from turn {start_index} on",
            "audio in a turn of the assistant that is trained: the last one, or those from start_index on",
            "Correct start_index or the turns, or remove the row.",
        )
    kept = _with_system_turn(where, turns, prompt)
    has_system_text = turns[0].role == "system" and "audio" not in turns[0].kinds
    others = turns[1:] if has_system_text else turns
    recordings = _recordings(others) or _recordings_with_text(turns)
    audio, text = recordings.pop(trained[-1])
    start_index += len(kept) - len(turns)
    return Row(line, audio, text or "", references=tuple(recordings), turns=kept, start_index=start_index)


def _with_system_turn(where: str, turns: tuple[Turn, ...], prompt: PromptSettings) -> tuple[Turn, ...]:
    """The turns after the corpus's system text, or after their own where --keep-system keeps it."""
    own, others = (turns[0], turns[1:]) if turns[0].role == "system" else (Turn("system", ()), turns)
    if prompt.keep_system and any(own.parts):
        return turns
    if "audio" in own.kinds:
        found, expected = "a system turn with audio", "one text, since --system-text replaces it"
        action = "Add --keep-system, which keeps the turn as it is."
        raise Rejected("failed", "system_turn", where, found, expected, action)
    return (Turn("system", (prompt.system_text,)), *others)


def _recordings(turns: tuple[Turn, ...]) -> list[tuple[Recording, str | None]]:
    """(recording, transcript) of each audio of a conversation that clones a voice; [] for another one."""
    try:
        return [*read_spoken(turns)]
    except Lacking:
        return []


def _recordings_with_text(turns: tuple[Turn, ...]) -> list[tuple[Recording, str | None]]:
    """(recording, transcript) of each audio: the text just before it in a turn of the assistant, else None."""
    found: list[tuple[Recording, str | None]] = []
    for turn in turns:
        transcript = None
        for part in turn.parts:
            if isinstance(part, Recording):
                found.append((part, transcript))
            transcript = part if isinstance(part, str) and turn.role == "assistant" else None
    return found
