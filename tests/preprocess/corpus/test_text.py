"""The text normaliser: what the model reads is the same however the words were typed, and doing it twice is once."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.common.errors import InputError
from preprocess.corpus.text import arabic_share, has_control_characters, normalise_text, num_digits, num_letters
from preprocess.manifest.read import read_manifest
from tests.preprocess.helpers import assert_parts, write_jsonl

# Text as people and programs leave it: letters of several scripts, marks, presentation forms, invisible signs.
SIGNS = st.one_of(
    st.characters(min_codepoint=0x600, max_codepoint=0x6FF),
    st.characters(min_codepoint=0xFB50, max_codepoint=0xFEFF),
    st.characters(min_codepoint=0x2000, max_codepoint=0x206F),
    st.characters(min_codepoint=0x300, max_codepoint=0x36F),
    st.sampled_from(" \t\n\xa0\xadaé日123٣"),
    st.characters(categories=["Cc", "Cf"]),
    st.characters(codec="utf-8"),
)

INVISIBLE = set(
    "\xad\u061c\u180e\u200b\u200d\u200e\u200f\u2060\u2061\u2064\u206a\u206f\ufe0f\ufeff\ufff9\ufffb\U000e0001\U000e007f"
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
    "control characters are not spoken": ("نع\0م\x07 \x7fلا\x9d", "نعم لا"),
    "control characters that are white space are a space": ("نعم\x0b\x1c\x85لا", "نعم لا"),
    "variation selectors, tags and annotations are not spoken": (
        "نع\ufe0fم\u180e\u2063\U000e0041 \ufff9لا\ufffb",
        "نعم لا",
    ),
    "the zero-width non-joiner is spelling": ("می\u200cخواهم", "می\u200cخواهم"),
    "composed and decomposed are one": ("آمن caf\u0065\u0301", "آمن café"),
    "white space is one space": ("  نعم \t\n لا\xa0 ثم ", "نعم لا ثم"),
    "digits stay as written": ("٣ و 3", "٣ و 3"),
    "other compatibility forms stay": ("x² ① ｱ", "x² ① ｱ"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_version_3(name):
    text, expected = EXAMPLES[name]
    assert normalise_text(text, 3) == unicodedata.normalize("NFC", expected)
    assert normalise_text(text) == normalise_text(text, 3)


@given(text=st.text(SIGNS, max_size=12))
def test_normalising_twice_changes_nothing(text):
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not has_control_characters(once)
    assert not [sign for sign in once if unicodedata.category(sign) == "Cc" or sign in INVISIBLE]


@pytest.mark.parametrize("version", [0, 2, 4])
def test_a_version_that_is_not_known_is_refused(version):
    with pytest.raises(InputError) as caught:
        normalise_text("نعم", version)
    assert_parts(caught.value, "text normaliser", f"version {version}", "version 3", "the release that wrote")


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


AUDIO = {"type": "audio", "audio_url": "a.wav"}
SEEN = "Salma سلمى"


@given(
    places=st.lists(st.tuples(st.integers(0, len(SEEN)), st.sampled_from(sorted(INVISIBLE | {"\u200c", "\u0640"}))))
)
def test_names_that_differ_by_what_nobody_sees_are_one(tmp_path_factory, places):
    typed = SEEN
    for place, sign in places:
        typed = typed[:place] + sign + typed[place:]
    row = {"audio": "a.wav", "text": "نعم", "speaker": typed, "id": f" {typed}"}
    manifest = read_manifest(write_jsonl(tmp_path_factory.mktemp("names") / "m.jsonl", [row]), [], "")
    assert [(row.speaker, row.id) for row in manifest.rows] == [(SEEN, SEEN)]


@pytest.mark.parametrize("field", ["speaker", "id", "language"])
@pytest.mark.parametrize("sign", ["\0", "\x1b", "\x7f", "\x9f"])
def test_a_name_with_a_control_character_is_refused_by_name(tmp_path, field, sign):
    columns = {"audio": "a.wav", "text": "نعم", "speaker": "s"}
    turns = [{"role": "user", "content": "نعم"}, {"role": "assistant", "content": [AUDIO]}]
    rows = [
        columns | {field: f"sal{sign}ma"},
        {"messages": 2 * turns, "speaker": "s"} | {field: f"sal{sign}ma"},
        columns,
    ]
    manifest = read_manifest(write_jsonl(tmp_path / "m.jsonl", rows), [], "")
    assert [row.line for row in manifest.rows] == [3]
    for line, error in manifest.rejected:
        assert error.reason == "malformed_row"
        found = f"{field} = {f'sal{sign}ma'!r}, with control characters"
        assert_parts(error, f"m.jsonl line {line}", found, f"{field} as it is written", "Correct the row")
