"""Text as the model gets it: the normaliser, counts of letters, and special tokens."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from preprocess.common.errors import InputError, Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NORMALISER_VERSION = 3
# Special tokens that occur in Boson's own system texts: they mark words and begin or end no turn.
_SYSTEM_MARKUP = {
    f"<|{name}_{end}|>" for name in ("scene_desc", "generation_instruction") for end in ("start", "end")
}

# Boson's marks for sounds that are no words, as its examples/generation.py writes them into a transcript:
#     <SE>[...]</SE>        a sound: Laughter, Music, Applause, Cheering, Cough
#     <SE_s>[...]</SE_s>    one begins: Music, Singing, Humming (some versions: <SE>[Humming]</SE>)
#     <SE_e>[...]</SE_e>    it ends: Music, Singing, Humming
# Of the six tags, these four are special tokens of the released tokenizer; </SE_s> and </SE_e> are plain text to it.
MARK_TOKENS = ("<SE>", "</SE>", "<SE_s>", "<SE_e>")
_MARK_TAGS = (*MARK_TOKENS, "</SE_s>", "</SE_e>")
# A whole mark: the words between its brackets have a letter, and no bracket or bar of another token.
_MARK = re.compile(r"<(SE|SE_s|SE_e)>\[(?=[^\[\]<>|]*[^\W\d_])([^\[\]<>|]{1,80})\]</\1>")

_PRESENTATION_FORMS = re.compile("[\ufb50-\ufdff\ufe70-\ufefe]")

# Control characters that are no white space: NUL, DEL and the others of Unicode's category Cc.
_CONTROLS = "\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
# Signs that are drawn as nothing: Unicode's Default_Ignorable_Code_Point (bidirectional controls, soft hyphen, byte
# order mark, zero-width space and joiner, variation selectors, tags...) and the marks of interlinear annotations. The
# zero-width NON-joiner U+200C is none of them here: Persian and Urdu spell words with it.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200d-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_CONTROL = re.compile(f"[{_CONTROLS}]")
_UNSPOKEN = re.compile(f"[\u0640{_CONTROLS}{_INVISIBLE}]")  # U+0640: tatweel
_ARABIC = re.compile("[\u0600-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufefe]")

# Arabic in ISO 639, and the codes of its spoken varieties.
_ARABIC_LANGUAGES = {
    *("ar", "ara", "arabic", "arb", "arz", "ary", "arq", "ars"),
    *("apc", "acm", "aeb", "afb", "ajp", "ayl"),
}


def normalise_text(text: str, version: int = NORMALISER_VERSION) -> str:
    """`text` as the model gets it; a second call changes nothing. Raises InputError for an unknown version.

    Version 3: Arabic presentation forms become plain letters (NFKC on these blocks only); tatweel, control characters
    and invisible signs except U+200C go; then NFC, and single spaces for white space. Diacritics and digits stay.
    """
    if version != NORMALISER_VERSION:
        raise InputError(
            "text normaliser",
            f"version {version}",
            f"version {NORMALISER_VERSION}, the only one of this release",
            "Use the release that wrote the corpus or the checkpoint.",
        )
    plain = _UNSPOKEN.sub("", _PRESENTATION_FORMS.sub(_plain_letters, text))
    return " ".join(unicodedata.normalize("NFC", plain).split())


def _plain_letters(form: re.Match[str]) -> str:
    """NFKC of a presentation form, without the space that NFKC puts under a diacritic's isolated form."""
    return unicodedata.normalize("NFKC", form[0]).strip()


def normalise_name(name: str) -> str:
    """A speaker's name or an id, in which what can't be seen makes no difference: as a text, and without U+200C."""
    return normalise_text(name.replace("\u200c", ""))


def has_control_characters(text: str) -> bool:
    """Whether a text holds control characters (NUL, DEL...) other than white space such as tabs and line ends."""
    return bool(_CONTROL.search(text))


def is_arabic_language(language: str | None) -> bool:
    """Whether a row's language is Arabic or a spoken variety of it: a code, "ar-EG", "ar_SA", or "Arabic"."""
    return language is not None and re.split("[-_]", language.lower())[0] in _ARABIC_LANGUAGES


def without_marks(text: str) -> str:
    """A text without Boson's marks for sounds, whose words are not spoken. A broken mark stays."""
    return _MARK.sub(" ", text)


def has_marks(text: str) -> bool:
    """Whether a text has one of Boson's marks for sounds, whole."""
    return bool(_MARK.search(text))


def num_letters(text: str) -> int:
    """Number of letters and digits, which take time to say.

    Diacritics, tatweel, punctuation and marks for sounds do not count.
    """
    return sum(unicodedata.category(sign)[0] in "LN" for sign in without_marks(text).replace("\u0640", ""))


def num_digits(text: str) -> int:
    """Number of decimal digits of any script. They stay as they are, and can be read aloud in several ways."""
    return sum(sign.isdecimal() for sign in without_marks(text))


def arabic_share(text: str) -> float:
    """Share (0 to 1) of a text's letters that are Arabic script; 0.0 for a text without letters."""
    letters = [sign for sign in without_marks(text) if sign.isalpha()]
    return sum(bool(_ARABIC.match(sign)) for sign in letters) / max(len(letters), 1)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """sha256 of all that decides how a text is tokenized: vocabulary, merges, special tokens, how a text is split.

    It is the same for the files that any release of transformers writes. What adds tokens around a text or makes text
    of tokens is left out: prompts are built from plain texts.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    added = sorted(whole["added_tokens"], key=lambda token: token["id"])
    parts = {**{key: whole[key] for key in ("normalizer", "pre_tokenizer")}, "added_tokens": added}
    parts["model"] = {**{key: value for key, value in model.items() if value is not None}, "merges": merges}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """All texts that become special tokens; the tokenizer's `all_special_tokens` has only those with a role."""
    return sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def check_mark_tokens(model: str, specials: Iterable[str]) -> None:
    """Raise InputError where not all of MARK_TOKENS are among `specials`: the model would read marks as letters."""
    missing = [token for token in MARK_TOKENS if token not in set(specials)]
    if missing:
        found = f"{model}, whose tokenizer lacks the special tokens {', '.join(missing)}"
        expected = f"a model whose tokenizer has {', '.join(MARK_TOKENS)}, as the released one has"
        raise InputError("--allow-marks", found, expected, "Leave it out, and remove the marks from the texts.")


def refuse_special_tokens(
    where: str, place: str, text: str, specials: Iterable[str], allow_marks: bool = False
) -> None:
    """Raise Rejected (an InputError) for a normalised text that contains one of the special tokens `specials`.

    place: what the text is, for example "transcript"; a "system text" may contain Boson's own markup. allow_marks:
    whether whole marks for sounds are allowed; what is left of a broken one is refused.
    """
    allowed = _SYSTEM_MARKUP if place == "system text" else ()
    # The words of a mark stay: there may be a token among them.
    checked, others = (_MARK.sub(r" \2 ", text), _MARK_TAGS) if allow_marks else (text, ())
    special = next((token for token in (*specials, *others) if token in checked and token not in allowed), None)
    if special is None:
        return
    found, expected = f"the special token {special} in the {place}", "only words"
    action = "Remove it from the text."
    if special not in _MARK_TAGS:
        expected += ": a special token would change the prompt's structure"
    elif allow_marks:
        found, expected = f"{special} of a broken mark in the {place}", "whole marks, such as <SE>[Laughter]</SE>"
        action = "Complete the mark, or remove it from the text."
    elif place != "system text":
        expected += ": marks for sounds are not allowed here"
        action = (
            "Remove it from the text, or allow marks with --allow-marks (preprocess.shard, for a model that learns "
            "them; launch.generate, to try a model that did not)."
        )
    raise Rejected("failed", "special_token", where, found, expected, action)
