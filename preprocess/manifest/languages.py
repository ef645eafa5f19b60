"""Codes of languages, to tell a language from a speaker."""

import re

# ISO 639-1, the ISO 639-3 codes of Arabic and its varieties, and what Asian corpora write.
_LISTED = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so
sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
ara arb arz ary arq ars apc acm aeb afb ajp ayl eng deu fra spa ita por rus tur fas urd hin cmn yue jpn kor jp
cn arabic english german french spanish italian portuguese russian turkish persian urdu hindi
"""
_CODES = set(_LISTED.split())
_WRITTEN = re.compile(r"([a-z]+)(?:[-_](?:[a-z]{2,4}|\d{3}))?")


def is_language_code(text: str) -> bool:
    """Whether a text is a language: "ar", "ZH", "en-US", "ar_EG", "Arabic"."""
    written = _WRITTEN.fullmatch(text.strip().lower())
    return written is not None and written[1] in _CODES
