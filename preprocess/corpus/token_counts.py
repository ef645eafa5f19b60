"""The lengths of a clip's texts in tokens, which the index has: plans of training are made of them."""

from preprocess.common.json_file import JsonObject
from preprocess.corpus.base_model import BaseModel
from preprocess.corpus.dialogue import audios_of, read_dialogue


def token_counts(base: BaseModel, key: str, meta: JsonObject, system_text: str) -> JsonObject:
    """The columns text_tokens, system_tokens and dialogues of a clip's index row.

    meta: the clip's json member. system_text: the corpus's.
    """
    own_system_text = meta.get("system_text")
    return {
        "text_tokens": base.num_tokens(meta["text_normalised"]),
        "system_tokens": base.num_tokens(own_system_text) if own_system_text else None,
        "dialogues": [
            _dialogue_columns(base, key, position, stored, system_text)
            for position, stored in enumerate(meta["dialogues"])
        ],
    }


def _dialogue_columns(base: BaseModel, key: str, position: int, stored: JsonObject, system_text: str) -> JsonObject:
    """What the index has of dialogue `position` of the clip `key`."""
    dialogue = read_dialogue(stored, key, system_text)
    stream_tokens, text_labels = base.dialogue_tokens(dialogue)
    audios = [audio._asdict() for audio in audios_of(dialogue)]
    return {"position": position, "stream_tokens": stream_tokens, "text_labels": text_labels, "audios": audios}
