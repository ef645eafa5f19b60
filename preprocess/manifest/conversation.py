"""The turns of a ChatML row as they stand there: texts and recordings, and the marks that stand for recordings."""

import json
import math
import re
from collections.abc import Iterator
from typing import TypeGuard

from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.columns import Turn
from preprocess.manifest.values import is_missing, malformed_row

# As published rows of Higgs end the text of a reference whose recording is the assistant's next turn.
_AUDIO_MARKS = re.compile(r"\s*<\|audio_bos\|>\s*<\|AUDIO\|>\s*<\|audio_eos\|>\s*\Z")


def read_turns(where: str, record: JsonObject) -> tuple[Turn, ...]:
    """The turns of `messages`. Raises Rejected for what is no text and no recording with a path."""
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
    unused = list(attached)
    if unused:
        found = f"{len(unused)} of {len(audios)} audios without a mark <audio>: {json.dumps(unused)[:60]}"
        raise malformed_row(where, found, "as many marks <audio> in the turns as `audios`")
    return tuple(Turn(str(message.get("role")), own) for message, own in zip(messages, parts, strict=True))


def without_audio_marks(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], int]:
    """(turns, how many marks came off): at the end of the user's turn, where the assistant's next one has audio.

    There a recording follows anyway. Marks elsewhere stay, and are refused as the special tokens that they are.
    """
    found, num_marks = [], 0
    for number, turn in enumerate(turns):
        following = turns[number + 1 : number + 2]
        if turn.role == "user" and any(t.role == "assistant" and "audio" in t.kinds for t in following):
            *others, last = turn.parts or ("",)
            if isinstance(last, str) and _AUDIO_MARKS.search(last):
                num_marks += 1
                text = _AUDIO_MARKS.sub("", last)
                turn = Turn(turn.role, (*others, text) if text or not others else tuple(others))
        found.append(turn)
    return tuple(found), num_marks


def describe_shape(turns: tuple[Turn, ...]) -> str:
    """ "user: text / assistant: audio" """
    return " / ".join(f"{turn.role}: {describe_parts(turn)}" for turn in turns) or "no turns"


def describe_parts(turn: Turn) -> str:
    """ "text, audio" """
    return ", ".join(turn.kinds) or "nothing"


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
    if is_missing(offset):
        return Recording(_read_path(where, path))
    duration = None if is_missing(duration) else duration
    if not (_is_number(offset) and offset >= 0 and (duration is None or (_is_number(duration) and duration > 0))):
        found = f"offset {offset!r}, duration {duration!r}"
        raise malformed_row(where, found, "seconds: an offset of 0 or more, a duration above 0")
    if duration is None:
        return Recording(_read_path(where, path), offset or None)
    return Recording(_read_path(where, path), offset, offset + duration)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_path(where: str, value: object) -> str:
    if not isinstance(value, str) or value in ("", "placeholder"):
        raise malformed_row(where, "audio without a path", "audio_url, or as many `audios` as <audio> marks")
    return value
