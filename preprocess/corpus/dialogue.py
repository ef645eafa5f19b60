"""The layout a dialogue has in training and at inference, and the text normaliser both apply.

Boson's serve engine clones a voice from this conversation, and the model is trained on nothing else, unless the rows
of the corpus are conversations kept as written:

    system     the system text
    user       transcript of the reference      } once for each
    assistant  audio of the reference           } reference
    user       text to speak
    assistant  audio of the target              (training only: the turn that is trained)

What changes the prompt is part of the model, so the layout's name, the system text (and whether rows had their own)
and the normaliser's version are written into corpus.json, from there into checkpoints and the merged folder, and
generation applies the same ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent

DEFAULT_SYSTEM_TEXT = "Generate audio following instruction."
# A label that is none: of prepare_chatml_sample, Boson's collator and torch's cross-entropy alike.
IGNORE_INDEX = -100
CANONICAL, AS_WRITTEN = "canonical", "as-written"  # corpus.json: layout.name


def voice_cloning_dialogue(
    system_text: str,
    references: Sequence[tuple[str, str]],
    target_text: str,
    target_audio: str | None = None,
    *,
    tower_audios: Sequence[str] = (),
    with_codes: bool = True,
) -> ChatMLSample:
    """Boson's ChatMLSample in the canonical layout.

    references: (transcript, audio) pairs, in order; `audio` is what Boson calls audio_url, a path or a clip key.
    target_audio: with it, the sample ends with the target's turn and `start_index` makes that turn the only
    labelled one; without it, the sample is the prompt that HiggsAudioServeEngine.generate takes.
    tower_audios: audios that a base with an audio tower takes as waveforms; they open the first user turn, because
    Boson's collator finds a waveform only where no code precedes it. with_codes: whether the codes of references
    follow their transcripts, in turns of the assistant.
    Texts are used as they are: normalise them before.
    """
    messages = [Message(role="system", content=system_text)]
    tower_parts = [AudioContent(audio_url=audio) for audio in tower_audios]
    for transcript, audio in references:
        messages.append(Message(role="user", content=[*tower_parts, TextContent(text=transcript)]))
        tower_parts = []
        if with_codes:
            messages.append(Message(role="assistant", content=[AudioContent(audio_url=audio)]))
    messages.append(Message(role="user", content=[TextContent(text=target_text)]))
    if target_audio is None:
        return ChatMLSample(messages=messages)
    messages.append(Message(role="assistant", content=[AudioContent(audio_url=target_audio)]))
    return ChatMLSample(messages=messages, start_index=len(messages) - 1)


class DialogueAudio(NamedTuple):
    """An audio of a dialogue, by its clip's key: whether its codes stand there, in a turn of the assistant."""

    key: str
    has_codes: bool
    trained: bool


def read_dialogue(
    stored: Mapping, target: str, system_text: str, *, tower_audios: Sequence[str] = (), with_codes: bool = True
) -> ChatMLSample:
    """Boson's ChatMLSample of a dialogue as shards keep it; an `audio_url` is a clip's key.

    stored: as `canonical_dialogue` or `written_dialogue` makes it. target: the key of the clip that keeps it.
    system_text: that of the corpus. tower_audios, with_codes: as `voice_cloning_dialogue` takes them.
    """
    if "messages" in stored:
        turns = [Message(turn["role"], [_part(part) for part in turn["content"]]) for turn in stored["messages"]]
        return ChatMLSample(messages=turns, start_index=stored["start_index"])
    references = [(reference["text"], reference["key"]) for reference in stored["references"]]
    system_text = stored.get("system_text", system_text)
    return voice_cloning_dialogue(
        system_text, references, stored["text"], target, tower_audios=tower_audios, with_codes=with_codes
    )


def dialogue_of(
    target: Mapping, references: Iterable[tuple[str, Mapping]] = (), position: int | None = None
) -> Mapping:
    """The dialogue that trains a clip, as `read_dialogue` takes it: the one answer for training, show and --dry-run.

    target: the clip's meta, as its shard keeps it. references: (key, meta) of the clips that were drawn for it.
    position: of a dialogue that the clip keeps, which names its own references; None or -1 where they are drawn.
    """
    if position is not None and position >= 0:
        return target["dialogues"][position]
    transcripts = [(key, meta["text_normalised"]) for key, meta in references]
    return canonical_dialogue(target["text_normalised"], transcripts, target.get("system_text"))


def canonical_dialogue(text: str, references: Iterable[tuple[str, str]], system_text: str | None = None) -> dict:
    """A dialogue as `read_dialogue` takes it, in the canonical layout. references: (key, transcript) pairs.

    system_text: the row's own, where it has one. Texts are normalised already.
    """
    dialogue = {"text": text, "references": [{"key": key, "text": words} for key, words in references]}
    return dialogue | ({"system_text": system_text} if system_text else {})


def written_dialogue(turns: Iterable[tuple[str, Iterable[tuple[str, str]]]], start_index: int) -> dict:
    """A dialogue as `read_dialogue` takes it, as its row has it.

    turns: (role, parts), a part ("text", words) or ("audio", a clip's key). start_index: the first that is trained.
    """
    names = {"text": "text", "audio": "audio_url"}
    messages = [
        {"role": role, "content": [{"type": kind, names[kind]: content} for kind, content in parts]}
        for role, parts in turns
    ]
    return {"messages": messages, "start_index": start_index}


def _part(stored: Mapping) -> TextContent | AudioContent:
    is_text = stored["type"] == "text"
    return TextContent(text=stored["text"]) if is_text else AudioContent(audio_url=stored["audio_url"])


def reference_keys(stored: Mapping, target: str) -> list[str]:
    """Keys of the clips of a stored dialogue besides its target."""
    return [audio.key for audio in audios_of(read_dialogue(stored, target, "")) if audio.key != target]


def audios_of(dialogue: ChatMLSample) -> list[DialogueAudio]:
    """Its audios in order."""
    return [
        DialogueAudio(part.audio_url, message.role == "assistant", _is_trained(dialogue, turn))
        for turn, message in enumerate(dialogue.messages)
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, AudioContent)
    ]


def _is_trained(dialogue: ChatMLSample, turn: int) -> bool:
    """Whether Boson's prepare_chatml_sample labels the turn."""
    return dialogue.messages[turn].role == "assistant" and turn >= (dialogue.start_index or 0)
