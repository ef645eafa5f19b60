"""The ChatML dialect: `messages` in the voice-cloning shape, or already in the canonical one (preprocess.layout)."""

import json
from collections.abc import Iterator

from preprocess.errors import Rejected
from preprocess.recording import Recording
from preprocess.rows import Row, malformed

_SHAPE = (
    "user: reference text, reference audio, instruction / assistant: text, audio; "
    "or user: text / assistant: audio, once a reference and once for the target"
)


def from_chatml(line: int, where: str, record: dict, keep_system: bool = False) -> Row:
    """The Row that a conversation is. Raises Rejected where it is none.

    keep_system: its system turn must be one text.
    """
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise malformed(where, f"messages = {json.dumps(messages, ensure_ascii=False)[:60]}", "a list of turns")
    if any(message.get("recipient") for message in messages):
        raise Rejected(
            "failed",
            "recipient",
            where,
            "a turn with a recipient",
            "turns that speak to the listener: this layout has no recipient",
            "Remove the row, or the recipient if the turn is plain speech.",
        )
    audios = record.get("audios") or []
    if not isinstance(audios, list):
        raise malformed(where, f"audios = {json.dumps(audios, ensure_ascii=False)[:60]}", "a list of paths")
    attached = iter(audios)
    turns = [(message.get("role"), list(_parts(where, message.get("content"), attached))) for message in messages]
    system_text = None
    if turns and turns[0][0] == "system":
        (_, system), *turns = turns
        system_text = _system_text(where, system, keep_system)
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
    return Row(line, audio, text, references=tuple(references), system_text=system_text, **about)


def _system_text(where: str, parts: list[tuple[str, str | Recording]], keep: bool) -> str | None:
    """What a system turn says; None where it says nothing. Raises Rejected where more than a text is to be kept."""
    if keep and [kind for kind, _ in parts] != ["text"]:
        raise Rejected(
            "failed",
            "system_turn",
            where,
            f"a system turn of {', '.join(kind for kind, _ in parts) or 'nothing'}",
            "one text, since --keep-system keeps it",
            "Write it as one text, or leave out --keep-system.",
        )
    return " ".join(text for kind, text in parts if kind == "text") or None


def _parts(where: str, content: object, attached: Iterator[object]) -> Iterator[tuple[str, str | Recording]]:
    """("text", words) and ("audio", recording) of a turn; `<audio>` in a string takes the next attached file."""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise malformed(where, f"content {json.dumps(part)[:60]}", "text, or parts of text and audio")
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            for number, text in enumerate(part["text"].split("<audio>")):
                if number:
                    yield "audio", Recording(_path(where, next(attached, None)))
                if text or "<audio>" not in part["text"]:
                    yield "text", text
        elif part.get("type") == "audio":
            yield "audio", _part_of(where, part)
        else:
            raise malformed(where, f"a part of type {part.get('type')!r}", "parts of type text or audio")


def _part_of(where: str, part: dict) -> Recording:
    """An audio part. `offset` and `duration` cut it from a longer file; `duration` alone only describes the file."""
    path, offset, duration = part.get("audio_url") or part.get("audio"), part.get("offset"), part.get("duration")
    if not offset:
        return Recording(_path(where, path))
    numbers = [isinstance(value, int | float) and value > 0 for value in (offset, duration) if value is not None]
    if not all(numbers):
        raise malformed(where, f"offset {offset!r}, duration {duration!r}", "both in seconds, above 0")
    return Recording(_path(where, path), offset, None if duration is None else offset + duration)


def _path(where: str, value: object) -> str:
    if not isinstance(value, str) or value in ("", "placeholder"):
        raise malformed(where, "audio without a path", "audio_url, or as many `audios` as <audio> marks")
    return value
