"""Text as the model reads it: the normaliser, counts of letters, and special tokens."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from preprocess.common.errors import InputError, Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NORMALISER_VERSION = 2


# Special tokens that Boson's own system texts hold: they mark words and change no turn.
_SYSTEM_MARKUP = {
    f"<|{name}_{end}|>" for name in ("scene_desc", "generation_instruction") for end in ("start", "end")
}


_PRESENTATION_FORMS = re.compile("[\ufb50-\ufdff\ufe70-\ufefe]")


# Tatweel, bidirectional controls, and what has no width: soft hyphen, zero-width space and joiner, word joiner, byte
# order mark. The zero-width NON-joiner U+200C stays: Persian and Urdu spell words with it.
_UNSPOKEN = re.compile("[\u0640\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u00ad\u200b\u200d\u2060\ufeff]")


_ARABIC = re.compile("[\u0600-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufefe]")


def normalise_text(text: str, version: int = NORMALISER_VERSION) -> str:
    """`text` as the model reads it; doing it twice changes nothing. Raises InputError for an unknown version.

    Version 2: Arabic presentation forms as plain letters (NFKC, of these blocks alone); no tatweel, bidirectional
    controls or zero-width characters but U+200C; NFC; white space as single spaces. Diacritics and digits stay.
    """
    if version != NORMALISER_VERSION:
        raise InputError(
            "text normaliser",
            f"version {version}",
            f"version {NORMALISER_VERSION}, the one that this release knows",
            "Use the release that wrote the corpus or the checkpoint.",
        )
    plain = _UNSPOKEN.sub("", _PRESENTATION_FORMS.sub(_plain_letters, text))
    return " ".join(unicodedata.normalize("NFC", plain).split())


def _plain_letters(form: re.Match[str]) -> str:
    """A diacritic's isolated form is compatible with a space that carries it: the space is not of the text."""
    return unicodedata.normalize("NFKC", form[0]).strip()


def num_letters(text: str) -> int:
    """Letters and digits of a text: what takes time to say. Diacritics, tatweel and punctuation count 0."""
    return sum(unicodedata.category(sign)[0] in "LN" for sign in text.replace("\u0640", ""))


def num_digits(text: str) -> int:
    """Decimal digits of any script: they are left as they are, and a voice may read them in many ways."""
    return sum(sign.isdecimal() for sign in text)


def arabic_share(text: str) -> float:
    """The share of a text's letters that are of the Arabic script; 0.0 for a text without letters."""
    letters = [sign for sign in text if sign.isalpha()]
    return sum(bool(_ARABIC.match(sign)) for sign in letters) / max(len(letters), 1)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """sha256 of all that decides which tokens a text becomes: the same after the tokenizer was saved again."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """All texts that the tokenizer reads as special tokens; its `all_special_tokens` are those with a role alone."""
    return sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def refuse_special_tokens(where: str, place: str, text: str, specials: Iterable[str]) -> None:
    """Raise Rejected, which is an InputError too, for a text with a special token, as the model reads the text.

    place: what the text is, "transcript" say; a "system text" may hold Boson's own markup.
    """
    allowed = _SYSTEM_MARKUP if place == "system text" else ()
    special = next((token for token in specials if token in text and token not in allowed), None)
    if special:
        raise Rejected(
            "failed",
            "special_token",
            where,
            f"the special token {special} in the {place}",
            "words alone: a special token would change the prompt's structure",
            "Remove it from the text.",
        )
