"""The one layout a dialogue has in training and at inference, and the text normaliser both apply.

Boson's serve engine clones a voice from this conversation, and the model is trained on nothing else:

    system     the system text
    user       transcript of the reference      } once for each
    assistant  audio of the reference           } reference
    user       text to speak
    assistant  audio of the target              (training only: the turn that is trained)

What changes the prompt is part of the model, so the system text and the normaliser's version are written
into corpus.json, from there into checkpoints and the merged folder, and generation applies the same ones.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent

from preprocess.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_SYSTEM_TEXT = "Generate audio following instruction."
NORMALISER_VERSION = 1


def normalise_text(text: str, version: int = NORMALISER_VERSION) -> str:
    """`text` as the model reads it. Version 1: Unicode NFC, outer white space removed."""
    if version != 1:
        raise InputError(
            "text normaliser",
            f"version {version}",
            f"version {NORMALISER_VERSION}, the only one this release knows",
            "Use the release that wrote the corpus or the checkpoint.",
        )
    return unicodedata.normalize("NFC", text).strip()


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """sha256 of all that decides which tokens a text becomes: the same after the tokenizer was saved again."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def voice_cloning_dialogue(
    system_text: str,
    references: Sequence[tuple[str, str]],
    target_text: str,
    target_audio: str | None = None,
) -> ChatMLSample:
    """Boson's ChatMLSample in the canonical layout.

    references: (transcript, audio) pairs, in order; `audio` is what Boson calls audio_url, a path or a clip key.
    target_audio: with it, the sample ends with the target's turn and `start_index` makes that turn the only
    labelled one; without it, the sample is the prompt that HiggsAudioServeEngine.generate takes.
    Texts are used as they are: normalise them before.
    """
    messages = [Message(role="system", content=system_text)]
    for transcript, audio in references:
        messages.append(Message(role="user", content=[TextContent(text=transcript)]))
        messages.append(Message(role="assistant", content=[AudioContent(audio_url=audio)]))
    messages.append(Message(role="user", content=[TextContent(text=target_text)]))
    if target_audio is None:
        return ChatMLSample(messages=messages)
    messages.append(Message(role="assistant", content=[AudioContent(audio_url=target_audio)]))
    return ChatMLSample(messages=messages, start_index=len(messages) - 1)
