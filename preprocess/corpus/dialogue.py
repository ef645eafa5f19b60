"""The layout of a dialogue, the same in training and at inference.

Boson's serve engine clones a voice from this conversation, and the model is trained on nothing else, except where the
rows of a corpus are conversations that are kept as written:

    system     the system text
    user       transcript of the reference      } once per
    assistant  audio of the reference           } reference
    user       text to speak
    assistant  audio of the target              (training only: the turn that is trained)

The model depends on all that shapes the prompt. So the layout's name, the system text (and whether rows had their
own), the version of the text normaliser and whether texts could have marks for sounds are written into corpus.json,
from there into checkpoints and the merged folder, and generation applies the same ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent

from preprocess.common.json_file import JsonObject

Stored = Mapping[str, Any]  # a JSON object of a shard: a clip's meta, or a dialogue in it
DEFAULT_SYSTEM_TEXT = "Generate audio following instruction."
# The label of a position that is not trained, in prepare_chatml_sample, Boson's collator and torch's cross-entropy.
IGNORE_INDEX = -100
CANONICAL, AS_WRITTEN = "canonical", "as-written"  # values of layout.name in corpus.json


def voice_cloning_dialogue(
    system_text: str,
    references: Sequence[tuple[str, str]],
    target_text: str,
    target_audio: str | None = None,
    *,
    tower_audios: Sequence[str] = (),
    with_codes: bool = True,
) -> ChatMLSample:
    """Boson's ChatMLSample in the canonical layout. Texts must be normalised already.

    references: (transcript, audio) pairs, in order; `audio` is Boson's audio_url: a path or a clip's key.
    target_audio: with it, the sample ends with the target's turn, and `start_index` makes that turn the only
    labelled one. Without it, the sample is the prompt for HiggsAudioServeEngine.generate.
    tower_audios: audios whose waveforms are audio-tower input, for a base that has one. They open the first user
    turn, because Boson's collator finds a waveform only where no codes precede it.
    with_codes: whether each reference's codes follow its transcript, in a turn of the assistant.
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
    """An audio of a dialogue: its clip's key, whether its codes are in a turn of the assistant, and trained there."""

    key: str
    has_codes: bool
    trained: bool


def read_dialogue(
    stored: Stored, target: str, system_text: str, *, tower_audios: Sequence[str] = (), with_codes: bool = True
) -> ChatMLSample:
    """Boson's ChatMLSample of a dialogue that a shard stores; each `audio_url` is a clip's key.

    stored: the result of `canonical_dialogue` or `written_dialogue`. target: the key of the clip that stores it.
    system_text: the corpus's, for a dialogue without its own. tower_audios, with_codes: see `voice_cloning_dialogue`;
    a dialogue kept as written ignores them.
    """
    if "messages" in stored:
        turns = [Message(turn["role"], [_read_part(part) for part in turn["content"]]) for turn in stored["messages"]]
        return ChatMLSample(messages=turns, start_index=stored["start_index"])
    references = [(reference["text"], reference["key"]) for reference in stored["references"]]
    system_text = stored.get("system_text", system_text)
    return voice_cloning_dialogue(
        system_text, references, stored["text"], target, tower_audios=tower_audios, with_codes=with_codes
    )


def dialogue_of(
    target: Stored, references: Iterable[tuple[str, Stored]] = (), position: int | None = None
) -> JsonObject:
    """The dialogue that trains a clip, for `read_dialogue`. Training, launch.show and --dry-run all ask here.

    target: the clip's meta, as its shard stores it. references: (key, meta) of the clips drawn for it.
    position: which of the clip's stored dialogues, which name their own references; None or -1 for drawn ones.
    """
    if position is not None and position >= 0:
        dialogue: JsonObject = target["dialogues"][position]
        return dialogue
    transcripts = [(key, meta["text_normalised"]) for key, meta in references]
    return canonical_dialogue(target["text_normalised"], transcripts, target.get("system_text"))


def canonical_dialogue(
    text: str, references: Iterable[tuple[str, str]], system_text: str | None = None
) -> JsonObject:
    """A dialogue in the canonical layout, for `read_dialogue`. Texts must be normalised already.

    references: (key, transcript) pairs. system_text: the row's own, if it has one.
    """
    dialogue: JsonObject = {"text": text, "references": [{"key": key, "text": words} for key, words in references]}
    return dialogue | ({"system_text": system_text} if system_text else {})


def written_dialogue(turns: Iterable[tuple[str, Iterable[tuple[str, str]]]], start_index: int) -> JsonObject:
    """A dialogue kept as its row has it, for `read_dialogue`.

    turns: (role, parts) pairs; a part is ("text", words) or ("audio", a clip's key).
    start_index: index of the first turn that is trained.
    """
    names = {"text": "text", "audio": "audio_url"}
    messages = [
        {"role": role, "content": [{"type": kind, names[kind]: content} for kind, content in parts]}
        for role, parts in turns
    ]
    return {"messages": messages, "start_index": start_index}


def _read_part(stored: Stored) -> TextContent | AudioContent:
    is_text = stored["type"] == "text"
    return TextContent(text=stored["text"]) if is_text else AudioContent(audio_url=stored["audio_url"])


def reference_keys(stored: Stored, target: str) -> list[str]:
    """Keys of a stored dialogue's clips, its target left out."""
    return [audio.key for audio in audios_of(read_dialogue(stored, target, "")) if audio.key != target]


def audios_of(dialogue: ChatMLSample) -> list[DialogueAudio]:
    """The dialogue's audios, in order."""
    audios = []
    for turn, message in enumerate(dialogue.messages):
        has_codes = message.role == "assistant"
        trained = has_codes and turn >= (dialogue.start_index or 0)  # the turns that prepare_chatml_sample labels
        if isinstance(message.content, list):
            keys = [part.audio_url for part in message.content if isinstance(part, AudioContent)]
            audios += [DialogueAudio(key, has_codes, trained) for key in keys]
    return audios
