"""Which names are those of languages, as corpora write them: ISO 639-1 codes, perhaps with a region, or words."""

import re

from preprocess.corpus.text import is_arabic_language

# The two letters of each code, one after another.
_ISO_639_1 = set(
    re.findall(
        "..",
        "aaabaeafakamanarasavayazbabebgbhbibmbnbobrbscacechcocrcscucvcydadedvdzeeeleneoeseteufafffifjfofrfyga"
        "gdglgngugvhahehihohrhthuhyhziaidieigiiikioisitiujajvkakgkikjkkklkmknkokrkskukvkwkylalblglilnloltlulv"
        "mgmhmimkmlmnmrmsmtmynanbndnengnlnnnonrnvnyocojomorospapiplpsptqurmrnrorurwsascsdsesgsiskslsmsnsosqsr"
        "ssstsusvswtatetgthtitktltntotrtstttwtyugukuruzvevivowawoxhyiyozazhzu",
    )
)
_WORDS = {"english", "french", "german", "spanish", "chinese", "persian", "urdu", "turkish", "hebrew", "russian"}
_REGION = re.compile(r"[-_][A-Za-z]{2,4}$")


def is_language(name: str) -> bool:
    """Whether a name is that of a language: "ar", "ar-EG", "arz", "Arabic", "en_US"."""
    word = _REGION.sub("", name.strip()).lower()
    return word in _ISO_639_1 or word in _WORDS or is_arabic_language(word)
