"""Noise in transcripts: each kind is found wherever it stands, and clean sentences have none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.demo.arabic_speech import SENTENCES
from preprocess.judges.text_noise import NOISE_KINDS, noise_kinds

CLEAN = (
    *SENTENCES,
    "Good morning, how are you today? It's 5 o'clock; AT&T and R&D cost 3 < 4.",
    "السَّلامُ عَلَيْكُم وَرَحْمَةُ اللهِ، قال Google إن ٣ من 5.",
    "می\u200cخواهم به خانه بروم؛ گفت: «پژوهش و چای».",
    "«\u00a0Voilà\u00a0», dit-il à l’été… café\u00a0» — ÉCOLE… Spaß“ Ærø Øre „groß“",
    "ÁRBOL ÑANDÚ é à ö — “quoted” ‘words’ 10 € 20 £ ½ 3²",
    "Привет, как дела? Γειά σου. שלום. 你好。 ﷺ",
    "None of them; nan bread; Null ist eine Zahl (laut) [sic].",
)
PIECES = {
    "control_characters": ["\0", "\x07", "\x1b", "\x7f", "\x9d"],
    "unknown_characters": ["\ue000", "\uf8ff", "\U000f0001", "\ufdd0", "\U0001fffe"],
    "html_entities": ["&amp;", "&#39;", "&#x27;", "&nbsp;", "&eacute;", "&quot;", " &nbsp "],
    "tags": ["<b>", "</b>", "<br/>", "<br />", "<BR>", '<font color="red">', "<!-- x -->", "<i>ok</i>", "<?xml v?>"],
    "escapes": ["\\n", "\\t", "\\r", "\\u0627", "\\x41", "\\'"],
    "addresses": [" http://a.b/c ", " https://x ", " www.example.com ", " a.b@c.org ", " example.com "],
    "placeholders": ["<unk>", "[UNK]", "<noise>", "[noise]", "(inaudible)", "{laughter}", "[موسيقى]", "<|nospeech|>"],
    "pictographs": ["\U0001f602", "\u2764", "\u266a"],
    "mojibake": ["Ø§Ù„", "Ø§Ù„Ø³Ù„Ø§Ù…", "ط§ظ„ط³ظ„ط§ظ…", " ÇáÓáÇã ", "Ã©", "â€™", "Ù\u0081Ù\u008a", "Ã˜Â§"],
}


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text_has_no_noise(text):
    assert noise_kinds(text) == []
    assert noise_kinds(text, "en") == []


@pytest.mark.parametrize("text", SENTENCES)
def test_a_clean_arabic_sentence_is_arabic(text):
    assert noise_kinds(text, "ar") == []


@given(data=st.data(), kind=st.sampled_from(sorted(PIECES)), text=st.sampled_from(CLEAN))
def test_a_piece_of_noise_is_found_wherever_it_stands(data, kind, text):
    piece = data.draw(st.sampled_from(PIECES[kind]))
    spaces = [0, *(place for place, sign in enumerate(text) if sign == " "), len(text)]
    place = data.draw(st.sampled_from(spaces))
    assert kind in noise_kinds(f"{text[:place]} {piece} {text[place:]}")
    if not piece.isspace() and kind in ("control_characters", "unknown_characters", "tags", "pictographs"):
        place = data.draw(st.integers(0, len(text)))
        assert kind in noise_kinds(text[:place] + piece + text[place:])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1256"])
@given(sentence=st.sampled_from(SENTENCES))
def test_arabic_read_in_another_encoding_is_mojibake(encoding, sentence):
    """Bytes for which the encoding has no sign stay control characters, as in most programs."""
    read = "".join(bytes([b]).decode(encoding, "ignore") or chr(b) for b in sentence.encode())
    assert "mojibake" in noise_kinds(read)


@given(text=st.text(max_size=20))
def test_any_text_has_kinds_that_are_named(text):
    kinds = noise_kinds(text, "ar")
    assert [kind for kind in NOISE_KINDS if kind in kinds] == kinds


@pytest.mark.parametrize("text", ["nan", "NaN", " null\n", "None", "<NA>", "N/A", "#N/A"])
def test_a_word_for_a_missing_value_is_noise_only_as_the_whole_transcript(text):
    assert "missing_value" in noise_kinds(text)
    assert "missing_value" not in noise_kinds(f"{text} words")


def test_a_transliteration_is_noise_under_an_arabic_language_alone():
    for language in ("ar", "ar-EG", "arz", "Arabic"):
        assert noise_kinds("marHabA, kayfa >anta?", language) == ["latin_for_arabic"]
    assert noise_kinds("marHabA, kayfa >anta?", "en") == noise_kinds("marHabA, kayfa >anta?") == []
    assert noise_kinds("12", "ar") == noise_kinds("سأذهب إلى Paris", "ar") == []
