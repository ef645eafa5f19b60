"""The ChatML dialect: `messages` in the voice-cloning shape, or already in the canonical one.

--layout as-written takes conversations of any shape: their turns are kept, and trained as Boson trains them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.columns import Row, Turn
from preprocess.manifest.values import is_missing, malformed_row, read_name

_SHAPE = (
    "user: reference text, reference audio, instruction / assistant: text, audio; "
    "or user: text / assistant: audio, once a reference and once for the target"
)
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class PromptSettings:
    """Settings of the prompt on which rows depend: the flags of preprocess.shard and the model's special tokens."""

    special_tokens: tuple[str, ...]
    system_text: str
    keep_system: bool = False
    as_written: bool = False


def row_from_chatml(line: int, where: str, record: JsonObject, prompt: PromptSettings) -> Row:
    """The Row of a conversation, with the text of its system turn. Raises Rejected where it can't be one."""
    turns = _read_turns(where, record)
    if prompt.as_written:
        row = _row_as_written(line, where, turns, record.get("start_index"), prompt)
    else:
        row = _voice_cloning_row(line, where, turns, prompt.keep_system)
    system_text = " ".join(turns[0].texts) if turns[0].role == "system" else ""
    return replace(
        row,
        speaker=_read_name(where, record, "speaker"),
        language=_read_name(where, record, "language"),
        id=_read_name(where, record, "id"),
        system_text=system_text or None,
    )


def _read_name(where: str, record: JsonObject, name: str) -> str | None:
    """A value of the row itself, else of its `misc`."""
    misc = record.get("misc")
    if is_missing(record.get(name)) and isinstance(misc, dict):
        return read_name(where, misc, name)
    return read_name(where, record, name)


def _read_turns(where: str, record: JsonObject) -> tuple[Turn, ...]:
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise malformed_row(where, f"messages = {json.dumps(messages, ensure_ascii=False)[:60]}", "a list of turns")
    if any(message.get("recipient") for message in messages):
        expected = "turns that speak to the listener: this layout has no recipient"
        action = "Remove the row, or the recipient if the turn is plain speech."
        raise Rejected("failed", "recipient", where, "a turn with a recipient", expected, action)
    audios = record.get("audios") or []
    if not isinstance(audios, list):
        raise malformed_row(where, f"audios = {json.dumps(audios, ensure_ascii=False)[:60]}", "a list of paths")
    attached = iter(audios)
    parts = [tuple(_read_parts(where, message.get("content"), attached)) for message in messages]
    return tuple(Turn(str(message.get("role")), own) for message, own in zip(messages, parts, strict=True))


def _describe_shape(turns: tuple[Turn, ...]) -> str:
    return " / ".join(f"{turn.role}: {_describe_parts(turn)}" for turn in turns) or "no turns"


def _describe_parts(turn: Turn) -> str:
    return ", ".join(turn.kinds) or "nothing"


def _voice_cloning_row(line: int, where: str, turns: tuple[Turn, ...], keep_system: bool) -> Row:
    if turns and turns[0].role == "system":
        if keep_system and turns[0].kinds != ["text"]:
            found = f"a system turn of {_describe_parts(turns[0])}"
            expected = "one text, since --keep-system keeps it"
            action = "Write it as one text, or leave out --keep-system."
            raise Rejected("failed", "system_turn", where, found, expected, action)
        turns = turns[1:]
    recordings = _voice_cloning_recordings(turns)
    if not recordings:
        action = "Rewrite the row in one of these shapes, or remove it."
        raise Rejected("failed", "not_voice_cloning", where, _describe_shape(turns), _SHAPE, action)
    *references, (audio, text) = recordings
    return Row(line, audio, text, references=tuple(references))


def _voice_cloning_recordings(turns: tuple[Turn, ...]) -> list[tuple[Recording, str]]:
    """(recording, transcript) of each audio, the target's last; [] for turns of another shape."""
    match turns:
        case (
            Turn("user", (str(reference_text), Recording() as reference, str())),
            Turn("assistant", (str(text), Recording() as audio)),
        ):
            return [(reference, reference_text), (audio, text)]
    recordings = []
    for first in range(0, len(turns), 2):
        match turns[first : first + 2]:
            case (Turn("user", (str(text),)), Turn("assistant", (Recording() as audio,))):
                recordings.append((audio, text))
            case _:
                return []
    return recordings


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
            f"{_describe_shape(turns)}, trained from turn {start_index} on",
            "audio in a turn of the assistant that is trained: the last one, or those from start_index on",
            "Correct start_index or the turns, or remove the row.",
        )
    kept = _with_system_turn(where, turns, prompt)
    has_system_text = turns[0].role == "system" and "audio" not in turns[0].kinds
    others = turns[1:] if has_system_text else turns
    recordings = _voice_cloning_recordings(others) or _recordings_with_text(turns)
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


def _read_parts(where: str, content: object, attached: Iterator[object]) -> Iterator[str | Recording]:
    """The parts of a turn; each `<audio>` in a string stands for the next attached file."""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise malformed_row(where, f"content {json.dumps(part)[:60]}", "text, or parts of text and audio")
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            for number, text in enumerate(part["text"].split("<audio>")):
                if number:
                    yield Recording(_read_path(where, next(attached, None)))
                if text or "<audio>" not in part["text"]:
                    yield text
        elif part.get("type") == "audio":
            yield _read_recording(where, part)
        else:
            raise malformed_row(where, f"a part of type {part.get('type')!r}", "parts of type text or audio")


def _read_recording(where: str, part: JsonObject) -> Recording:
    """An audio part. `offset` and `duration` cut it from a longer file; `duration` alone only describes the file."""
    path, offset, duration = part.get("audio_url") or part.get("audio"), part.get("offset"), part.get("duration")
    if not offset:
        return Recording(_read_path(where, path))
    if not all(isinstance(value, int | float) and value > 0 for value in (offset, duration) if value is not None):
        raise malformed_row(where, f"offset {offset!r}, duration {duration!r}", "both in seconds, above 0")
    return Recording(_read_path(where, path), offset, None if duration is None else offset + duration)


def _read_path(where: str, value: object) -> str:
    if not isinstance(value, str) or value in ("", "placeholder"):
        raise malformed_row(where, "audio without a path", "audio_url, or as many `audios` as <audio> marks")
    return value
