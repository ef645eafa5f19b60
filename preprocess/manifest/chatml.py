"""The ChatML dialect: `messages` in the voice-cloning shape, or already in the canonical one.

With --layout as-written a conversation of any shape: its turns are kept, and trained as Boson trains them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected
from preprocess.manifest.columns import Part, Row, Turn, malformed, plain_name

_SHAPE = (
    "user: reference text, reference audio, instruction / assistant: text, audio; "
    "or user: text / assistant: audio, once a reference and once for the target"
)
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """What the prompt is made with, as far as rows depend on it."""

    special_tokens: tuple[str, ...]
    system_text: str
    keep_system: bool = False
    as_written: bool = False


def from_chatml(line: int, where: str, record: dict, prompt: Prompt) -> Row:
    """The Row that a conversation is, with what its system turn says. Raises Rejected where it is none."""
    turns = _read_turns(where, record)
    misc = record.get("misc") if isinstance(record.get("misc"), dict) else {}
    about = {name: record.get(name) or misc.get(name) for name in ("speaker", "language", "id")}
    about = {name: None if value is None else plain_name(str(value)) for name, value in about.items()}
    system = turns[0][1] if turns and turns[0][0] == "system" else ()
    about["system_text"] = " ".join(text for kind, text in system if kind == "text") or None
    if prompt.as_written:
        return _as_written(line, where, turns, record.get("start_index"), prompt, about)
    if turns and turns[0][0] == "system":
        turns = turns[1:]
        if prompt.keep_system:
            _refuse_parts(where, system)
    recordings = _voice_cloning(turns)
    if not recordings:
        action = "Rewrite the row in one of these shapes, or remove it."
        raise Rejected("failed", "not_voice_cloning", where, _shape(turns), _SHAPE, action)
    *references, (audio, text) = recordings
    return Row(line, audio, text, references=tuple(references), **about)


def _read_turns(where: str, record: dict) -> tuple[Turn, ...]:
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
    return tuple(
        (message.get("role"), tuple(_parts(where, message.get("content"), attached))) for message in messages
    )


def _shape(turns: tuple[Turn, ...]) -> str:
    kinds = [(role, ", ".join(kind for kind, _ in parts) or "nothing") for role, parts in turns]
    return " / ".join(f"{role}: {parts}" for role, parts in kinds) or "no turns"


def _voice_cloning(turns: tuple[Turn, ...]) -> list[tuple[Recording, str]]:
    """(recording, what is said in it) of each audio, the target's last; [] for turns of another shape."""
    shape = [(role, [kind for kind, _ in parts]) for role, parts in turns]
    if shape == [("user", ["text", "audio", "text"]), ("assistant", ["text", "audio"])]:
        (_, ((_, reference_text), (_, reference), _)), (_, ((_, text), (_, audio))) = turns
        return [(reference, reference_text), (audio, text)]
    if shape == [("user", ["text"]), ("assistant", ["audio"])] * (len(shape) // 2):
        contents = [parts[0][1] for _, parts in turns]
        return list(zip(contents[1::2], contents[0::2], strict=True))
    return []


def _as_written(
    line: int, where: str, turns: tuple[Turn, ...], start_index: object, prompt: Prompt, about: dict
) -> Row:
    """The Row of a conversation that is kept: the last audio that Boson trains is its target.

    Boson trains the turns of the assistant from `start_index` on; a row without one trains the last of them.
    """
    strangers = [str(role) for role, _ in turns if role not in _ROLES]
    if strangers:
        found = f"a turn of the role {', '.join(strangers)}"
        raise Rejected("failed", "unknown_role", where, found, ", ".join(_ROLES), "Remove the row, or the turn.")
    has_text = turns and turns[0][0] == "system" and all(kind == "text" for kind, _ in turns[0][1])
    recordings = _voice_cloning(turns[1:] if has_text else turns) or _spoken_words(turns)
    if start_index is None:
        start_index = max((turn for turn, (role, _) in enumerate(turns) if role == "assistant"), default=0)
    if type(start_index) is not int or not 0 <= start_index < max(len(turns), 1):
        raise malformed(where, f"start_index {start_index!r}", f"a number of a turn, 0 to {len(turns) - 1}")
    places = [(turn, role) for turn, (role, parts) in enumerate(turns) for kind, _ in parts if kind == "audio"]
    trained = [n for n, (turn, role) in enumerate(places) if role == "assistant" and turn >= start_index]
    if not trained:
        raise Rejected(
            "failed",
            "no_target",
            where,
            f"{_shape(turns)}, trained from turn {start_index} on",
            "audio in a turn of the assistant that is trained: the last one, or those from start_index on",
            "Correct start_index or the turns, or remove the row.",
        )
    kept = _with_system(where, turns, prompt)
    start_index += len(kept) - len(turns)
    audio, text = recordings.pop(trained[-1])
    return Row(line, audio, text or "", references=tuple(recordings), turns=kept, start_index=start_index, **about)


def _with_system(where: str, turns: tuple[Turn, ...], prompt: Prompt) -> tuple[Turn, ...]:
    """The turns with the system text of the corpus before them, or with their own where that is to be kept."""
    has_own = turns[0][0] == "system"
    own = turns[0][1] if has_own else ()
    if prompt.keep_system and any(content for _, content in own):
        return turns
    if any(kind == "audio" for kind, _ in own):
        raise Rejected(
            "failed",
            "system_turn",
            where,
            "a system turn with audio",
            "one text, since --system-text replaces it",
            "Add --keep-system, which keeps the turn as it is.",
        )
    return (("system", (("text", prompt.system_text),)), *turns[has_own:])


def _spoken_words(turns: tuple[Turn, ...]) -> list[tuple[Recording, str | None]]:
    """(recording, what is said in it) of each audio: the text before it in a turn of the assistant, else None."""
    found = []
    for role, parts in turns:
        for (before, words), (kind, content) in zip((("none", None), *parts), parts, strict=False):
            if kind == "audio":
                found.append((content, words if role == "assistant" and before == "text" else None))
    return found


def _refuse_parts(where: str, system: tuple[Part, ...]) -> None:
    """Raise Rejected for a system turn that is more than one text."""
    if [kind for kind, _ in system] != ["text"]:
        raise Rejected(
            "failed",
            "system_turn",
            where,
            f"a system turn of {', '.join(kind for kind, _ in system) or 'nothing'}",
            "one text, since --keep-system keeps it",
            "Write it as one text, or leave out --keep-system.",
        )


def _parts(where: str, content: object, attached: Iterator[object]) -> Iterator[Part]:
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
