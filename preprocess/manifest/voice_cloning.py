"""Which recordings a conversation holds, and the words of each: read by what its turns have.

An assistant's audio says the text of its own turn, else that of the user's turn before it. A user's audio is a
reference; it says the text before it in its turn, and what stands after it is an instruction.
"""

from collections.abc import Sequence
from typing import TypeVar

from preprocess.audio.recording import Recording
from preprocess.manifest.columns import Turn

T = TypeVar("T")


class LacksPart(ValueError):
    """A conversation is no voice cloning; the text says what is lacking."""


def spoken_recordings(turns: Sequence[Turn]) -> list[tuple[Recording, str]]:
    """(recording, its words) of each audio, in order: references, then the target.

    turns: without the system's. Raises LacksPart for turns that are no references and a target, each with its text.
    """
    found: list[tuple[Recording, str]] = []
    asked: str | None = None  # the text of a user's turn, until an assistant says it
    for turn in turns:
        if turn.role == "user":
            if asked is not None:
                raise LacksPart("no audio of the assistant after a text of the user")
            references, texts = _split_user(turn)
            if references and found:
                raise LacksPart("no single target: a second turn of the user has a reference")
            found += references
            asked = None if references else _only(texts, "text in a turn of the user")
        elif turn.role == "assistant":
            found.append(_say(turn, asked))
            asked = None
        else:
            raise LacksPart(f"no role user or assistant: {turn.role}")
    if not turns or turns[-1].role != "assistant":
        raise LacksPart("no audio of the assistant at the end")
    return found


def _split_user(turn: Turn) -> tuple[list[tuple[Recording, str]], list[str]]:
    """(references with their words, texts after the last of them)."""
    references: list[tuple[Recording, str]] = []
    texts: list[str] = []
    for part in turn.parts:
        if isinstance(part, str):
            texts += [part] if part.strip() else []
            continue
        if not texts:
            raise LacksPart("no text before the reference")
        references.append((part, _only(texts, "text before the reference")))
        texts = []
    return references, texts


def _say(turn: Turn, asked: str | None) -> tuple[Recording, str]:
    audios = [part for part in turn.parts if isinstance(part, Recording)]
    texts = [text for text in turn.texts if text.strip()]
    if not audios:
        raise LacksPart("no audio in a turn of the assistant")
    audio = _only(audios, "audio in a turn of the assistant")
    text = _only(texts, "text in a turn of the assistant") if texts else asked
    if text is None:
        raise LacksPart("no text of the assistant's audio, in its turn or alone in the user's turn before it")
    return audio, text


def _only(parts: list[T], what: str) -> T:
    if len(parts) != 1:
        raise LacksPart(f"no single {what}: {len(parts)} of them")
    return parts[0]
