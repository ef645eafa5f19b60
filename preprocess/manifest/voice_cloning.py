"""A conversation read by what it has: references with their texts, and one target with its text.

The words of a recording of the assistant are the text of its turn; where that has none, the text of the user's turn
before. The words of a recording of the user are the text before it; what follows the recordings is an instruction.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from preprocess.audio.recording import Recording
from preprocess.corpus.text import normalise_text
from preprocess.manifest.columns import Turn

Spoken = tuple[Recording, str]  # and its transcript


class KnownTexts(NamedTuple):
    """Texts that a row has beside its conversation, which says no more whose its words are."""

    reference: str | None = None
    target: str | None = None


_NOTHING = KnownTexts()


class Lacking(Exception):
    """What a conversation lacks: "no text of the target a.wav"."""


def read_spoken(turns: tuple[Turn, ...], known: KnownTexts = _NOTHING) -> list[Spoken]:
    """(recording, transcript) of each audio in the order of the turns, the target's last.

    turns: without the system's. Raises Lacking where a recording has no text, or there is no target.
    """
    merged = [_join(role, list(group)) for role, group in groupby(turns, key=lambda turn: turn.role)]
    if not merged or merged[-1].role != "assistant" or "audio" not in merged[-1].kinds:
        raise Lacking("no target audio: the last turn is not one of the assistant with audio")
    if merged[0].role == "assistant":
        merged.insert(0, Turn("user", ()))
    exchanges = list(zip(merged[::2], merged[1::2], strict=False))
    roles = [turn.role for turn in merged]
    if roles != ["user", "assistant"] * (len(merged) // 2):
        raise Lacking("turns that are not by user and assistant in turn")
    if len(exchanges) > 1 and any("audio" in user.kinds for user, _ in exchanges):
        raise Lacking("audio of the user among several turns of the assistant: which one is the reference is open")
    return [spoken for user, assistant in exchanges for spoken in _read_exchange(user, assistant, known)]


def _join(role: str, turns: list[Turn]) -> Turn:
    return Turn(role, tuple(part for turn in turns for part in turn.parts if part != "" or len(turn.parts) == 1))


def _read_exchange(user: Turn, assistant: Turn, known: KnownTexts) -> Iterator[Spoken]:
    audios = [part for part in assistant.parts if isinstance(part, Recording)]
    if len(audios) != 1 or len(assistant.texts) > 1:
        raise Lacking(
            f"{len(audios)} audios and {len(assistant.texts)} texts in a turn of the assistant, not 1 of each"
        )
    references = list(_references(user))
    said = assistant.texts[0] if assistant.texts else None
    if said is None and not references and len(user.texts) == 1:
        said = user.texts[0]
    elif said is None and len(references) == 1:
        said, text = _whose_words(references[0][1], known)
        references = [(references[0][0], text)]
    for reference, text in references:
        if text is None:
            raise Lacking(f"no text of the reference {reference}")
        yield reference, text
    if said is None:
        raise Lacking(f"no text of the target {audios[0]}" + (", or of its reference" if references else ""))
    yield audios[0], said


def _references(user: Turn) -> Iterator[tuple[Recording, str | None]]:
    """(recording, the one text before it) of each audio of a user's turn."""
    texts: list[str] = []
    for part in user.parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if len(texts) > 1:
            raise Lacking(f"{len(texts)} texts before the reference {part}: which one is said in it is open")
        yield part, texts.pop() if texts else None


def _whose_words(text: str | None, known: KnownTexts) -> tuple[str | None, str | None]:
    """(the target's text, the reference's): `text` stands before the reference, and the target has none in its turn.

    Some pipelines write the words of the target there, others those of the reference; the row may say which.
    """
    if text is None:
        return known.target, known.reference
    if known.target is not None and _same(text, known.target):
        return text, known.reference
    if known.reference is not None and _same(text, known.reference):
        return known.target, text
    if known.target is not None and known.reference is not None:
        return None, None
    return (known.target, text) if known.reference is None else (text, known.reference)


def _same(one: str, other: str) -> bool:
    return normalise_text(one) == normalise_text(other)
