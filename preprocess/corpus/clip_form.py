"""The form of a clip's json member, as far as training reads it."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from preprocess.common.record import Form


class TextPart(Form):
    """Words of a turn."""

    type: Literal["text"]
    text: str


class AudioPart(Form):
    """An audio of a turn: a clip's key."""

    type: Literal["audio"]
    audio_url: str


class Turn(Form):
    """A turn of a dialogue as written."""

    role: Literal["system", "user", "assistant"]
    content: list[Annotated[TextPart | AudioPart, Field(discriminator="type")]]


class WrittenDialogue(Form):
    """The result of preprocess.corpus.dialogue.written_dialogue."""

    messages: list[Turn]
    start_index: Annotated[int, Field(ge=0)]


class Reference(Form):
    """A reference of a canonical dialogue."""

    key: str
    text: str


class CanonicalDialogue(Form):
    """The result of preprocess.corpus.dialogue.canonical_dialogue."""

    text: str
    references: list[Reference]
    system_text: str = ""


def _kind(dialogue: Any) -> str:
    return "written" if isinstance(dialogue, dict) and "messages" in dialogue else "canonical"


class ClipForm(Form):
    """A clip's json member."""

    text: str
    text_normalised: str
    dialogues: list[
        Annotated[
            Annotated[WrittenDialogue, Tag("written")] | Annotated[CanonicalDialogue, Tag("canonical")],
            Discriminator(_kind),
        ]
    ]
    system_text: str = ""
