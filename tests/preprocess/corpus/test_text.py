"""The text normaliser: what the model reads is the same however the words were typed, and doing it twice is once."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.common.errors import InputError
from preprocess.corpus.text import arabic_share, normalise_text, num_digits, num_letters
from preprocess.manifest.read import read_manifest
from tests.preprocess.helpers import assert_parts, write_jsonl

# Text as people and programs leave it: letters of several scripts, marks, presentation forms, invisible signs.
SIGNS = st.one_of(
    st.characters(min_codepoint=0x600, max_codepoint=0x6FF),
    st.characters(min_codepoint=0xFB50, max_codepoint=0xFEFF),
    st.characters(min_codepoint=0x2000, max_codepoint=0x206F),
    st.characters(min_codepoint=0x300, max_codepoint=0x36F),
    st.sampled_from(" \t\n\xa0\xadaé日123٣"),
    st.characters(codec="utf-8"),
)

EXAMPLES = {
    "presentation forms become letters": ("ﺳﻼﻡ", "سلام"),
    "a ligature becomes its letters": ("ﻻ ﷲ", "لا الله"),
    "a phrase in one sign becomes its words": ("محمد ﷺ", "محمد صلى الله عليه وسلم"),
    "an isolated mark stands on the letter before it": ("كتاب\ufe70", "كتابً"),
    "tatweel is not spoken": ("مـــرحبا", "مرحبا"),
    "diacritics stay": ("السَّلامُ عَلَيْكُم", "السَّلامُ عَلَيْكُم"),
    "bidirectional controls are not spoken": ("\u202bنعم\u202c \u2067لا\u2069\u200f \u061cثم", "نعم لا ثم"),
    "a byte order mark and zero-width spaces are not spoken": ("\ufeffنع\u200bم\u2060", "نعم"),
    "the zero-width non-joiner is spelling": ("می\u200cخواهم", "می\u200cخواهم"),
    "composed and decomposed are one": ("آمن caf\u0065\u0301", "آمن café"),
    "white space is one space": ("  نعم \t\n لا\xa0 ثم ", "نعم لا ثم"),
    "digits stay as written": ("٣ و 3", "٣ و 3"),
    "other compatibility forms stay": ("x² ① ｱ", "x² ① ｱ"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_version_2(name):
    text, expected = EXAMPLES[name]
    assert normalise_text(text, 2) == unicodedata.normalize("NFC", expected)
    assert normalise_text(text) == normalise_text(text, 2)


@given(text=st.text(SIGNS, max_size=12))
def test_normalising_twice_changes_nothing(text):
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert unicodedata.is_normalized("NFC", once)


@pytest.mark.parametrize("version", [0, 1, 3])
def test_a_version_that_is_not_known_is_refused(version):
    with pytest.raises(InputError) as caught:
        normalise_text("نعم", version)
    assert_parts(caught.value, "text normaliser", f"version {version}", "version 2", "the release that wrote")


def test_letters_are_what_takes_time_to_say():
    assert num_letters("السَّلامُ عَلَيْكُم!") == num_letters("السلام عليكم") == 11
    assert num_letters("مـــا 12") == 4
    assert num_letters("…؟ \u064b") == 0
    assert num_digits("٣ kg ۴ 12²") == 4


def test_the_arabic_share_counts_letters_alone():
    assert arabic_share("نعم! (12) yes") == 0.5
    assert arabic_share("؟ 12") == 0.0


def test_a_special_token_behind_an_invisible_sign_and_a_transcript_without_letters_are_named(tmp_path):
    texts = ["نعم", "<|eot\u200b_id|>", "\u200f…!"]
    rows = [{"audio": "a.wav", "text": text, "speaker": "s"} for text in texts]
    manifest = read_manifest(write_jsonl(tmp_path / "m.jsonl", rows), ["<|eot_id|>"], "")
    assert [(line, error.status, error.reason) for line, error in manifest.rejected] == [
        (2, "failed", "special_token"),
        (3, "screened", "empty_transcript"),
    ]
