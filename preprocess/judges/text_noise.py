"""Noise in transcripts: what a program left there and no speaker says. Each kind has a name, for counts and filters.

The texts are those of the manifest, before the normaliser.
"""

import html.entities
import re
import unicodedata

from preprocess.corpus.text import arabic_share, has_control_characters, is_arabic_language, without_marks

# {kind: what it is}, in the order in which the kinds are reported.
NOISE_KINDS = {
    "control_characters": "control characters such as NUL, which the normaliser removes",
    "unknown_characters": "characters of private use or without a meaning in Unicode",
    "html_entities": "HTML entities such as &amp;",
    "tags": "HTML or XML tags such as <b>",
    "escapes": "escapes such as \\n or \\u0627, written out",
    "addresses": "addresses of the web or of mail",
    "placeholders": "marks for what is no word, such as <unk> or [noise]",
    "pictographs": "emoji and other pictures",
    "missing_value": "nothing but a word for a missing value, such as nan",
    "latin_for_arabic": "Latin letters where the language is Arabic (a transliteration?)",
    "mojibake": "text read in another encoding than it was written in, such as \u00d8\u00a7\u00d9\u201e",
}

_ENTITY = re.compile(
    r"&(?:#\d{1,7};?|#[xX][0-9a-fA-F]{1,6};?|(?:amp|lt|gt|quot|nbsp|apos)\b|([A-Za-z][A-Za-z0-9]+;))"
)
_TAG = re.compile(r"<[/!?]?\[?([A-Za-z][\w:.-]*|--)(?:[\s/\[][^<>]*)?/?>")
_ESCAPE = re.compile(r"\\(?:[abfnrtv0\"']|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2})")
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]+://\S|\bwww\.\S|[\w.+-]+@[\w-]+\.\w|\b[a-z0-9-]+\.(?:com|org|net|edu|gov|info|io)\b",
    re.IGNORECASE,
)
# What transcribers and programs write in brackets for sounds, unknown words and the ends of a text.
_NO_WORD = (
    "(?:unk|unknown|oov|noises?|sil|silence|spn|nsn|laughs?|laughter|laughing|music|applause|coughs?|breath|inaudible|"
    "unintelligible|crosstalk|overlap|foreign|redacted|pad|mask|cls|sep|sos|eos|bos|blank|"
    "موسيقى|ضحك|تصفيق|صمت|ضوضاء|ضجيج|غير[ _]مفهوم|غير[ _]واضح)"
)
_PLACEHOLDER = re.compile(
    rf"<[/|]?{_NO_WORD}\W?>|\[{_NO_WORD}\]|\{{{_NO_WORD}\}}|\({_NO_WORD}\)|<\|[^<>|]*\|>", re.IGNORECASE
)
_CAPITALS_IN_BRACKETS = re.compile(r"\[[A-Z_]{2,}\]")
_PICTOGRAPH = re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]")
# As programs write them; "Null" and "none" may be words.
_MISSING = {"nan", "NaN", "NAN", "null", "NULL", "None", "N/A", "n/a", "#N/A", "NA", "<NA>", "NaT", "undefined"}


class _Bytes(dict[int, int]):
    """For str.translate: the byte that a sign was before it was read as `encoding`; a space for a sign of no byte.

    Control characters stay: they are bytes for which the encoding has no sign.
    """

    def __init__(self, encoding: str) -> None:
        signs = {byte: bytes([byte]).decode(encoding, "ignore") for byte in range(256)}
        super().__init__({number: number for number in range(160)} | {ord(s): byte for byte, s in signs.items() if s})

    def __missing__(self, sign: int) -> int:
        return ord(" ")


_BYTE_OF_LATIN, _BYTE_OF_ARABIC = _Bytes("cp1252"), _Bytes("cp1256")
_SEQUENCE = r"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})"
# Bytes of UTF-8 as signs: several characters in a row, or one of those that no spelling has (Ã©, Â«, â€™). A lone
# letter before a quotation mark, a dash or an ellipsis is none.
_UTF8_AS_LATIN = re.compile(
    rf"{_SEQUENCE}{{2,}}|\xc2[\xa0-\xbf]|\xc3[\x80-\x84\x86-\x90\x98-\xbf]|\xe2\x80[\x80-\xbf]"
)
_UTF8_AS_ARABIC = re.compile(r"(?:[\xd8-\xdb][\x80-\xbf]){2,}")
_ARABIC_AS_LATIN = re.compile(r"(?<![^\W\d_])[\xc0-\xff]{4,}(?![^\W\d_])")  # windows-1256 read as windows-1252


def noise_kinds(text: str, language: str | None = None, allow_marks: bool = False) -> list[str]:
    """The kinds of NOISE_KINDS that a transcript as given has, in their order. language: of its row.

    allow_marks: whether Boson's marks for sounds belong to the text: whole ones are then no noise.
    """
    text = without_marks(text) if allow_marks else text
    found = {
        "control_characters": has_control_characters(text),
        "unknown_characters": any(unicodedata.category(sign) in ("Co", "Cn") for sign in text),
        "html_entities": _has_entity(text),
        "tags": any(not _PLACEHOLDER.fullmatch(tag[0]) for tag in _TAG.finditer(text)),
        "escapes": bool(_ESCAPE.search(text)),
        "addresses": bool(_ADDRESS.search(text)),
        "placeholders": bool(_PLACEHOLDER.search(text) or _CAPITALS_IN_BRACKETS.search(text)),
        "pictographs": bool(_PICTOGRAPH.search(text)),
        "missing_value": text.strip() in _MISSING,
        "latin_for_arabic": is_arabic_language(language) and _is_latin(text),
        "mojibake": _is_mojibake(text),
    }
    assert found.keys() == NOISE_KINDS.keys()
    return [kind for kind, is_there in found.items() if is_there]


def _has_entity(text: str) -> bool:
    return any(not match[1] or match[1] in html.entities.html5 for match in _ENTITY.finditer(text))


def _is_latin(text: str) -> bool:
    """Whether most letters are Latin. A borrowed name in an Arabic sentence makes no difference."""
    num_latin = sum(sign.isascii() and sign.isalpha() for sign in text)
    return num_latin > 0 and arabic_share(text) < 0.5


def _is_mojibake(text: str) -> bool:
    if text.isascii():
        return False
    return bool(
        _UTF8_AS_LATIN.search(text.translate(_BYTE_OF_LATIN))
        or _UTF8_AS_ARABIC.search(text.translate(_BYTE_OF_ARABIC))
        or _ARABIC_AS_LATIN.search(text)
    )
