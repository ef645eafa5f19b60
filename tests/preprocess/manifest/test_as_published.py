"""Columns and rows as published corpora and pipelines have them, and rows that nobody foresaw."""

import copy

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.console import show_manifest
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.field_names import OTHER_NAMES
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.fixtures.dialects import MARKS, conversation, cut
from tests.preprocess.helpers import write_jsonl

GOOD = {"audio": "good.wav", "text": "words", "speaker": "good"}


def read(path, **how):
    return read_manifest(path, ["<|eot_id|>", "<|AUDIO|>"], DEFAULT_SYSTEM_TEXT, **how)


def read_row(tmp_path, row):
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [GOOD, row]))
    assert not manifest.rejected, manifest.rejected[0][1]
    return manifest.rows[1]


@pytest.mark.parametrize(("field", "name"), [(field, n) for field, names in OTHER_NAMES.items() for n in names])
def test_usual_names_of_columns_need_no_flag_in_any_case(field, name, tmp_path):
    values = {"audio": "a.wav", "text": "words", "speaker": "salma", "language": "ar", "id": "one"}
    values |= {"reference_audio": "r.wav", "reference_text": "said", "start": 1.0, "end": 2.5}
    if field == "duration":
        values["duration"] = values.pop("end") - 1.0
    expected = read(write_jsonl(tmp_path / "m.jsonl", [values])).rows
    for written in (name, name.upper(), f" {name.replace('_', ' ')} "):
        row = {written if column == field else column: value for column, value in values.items()}
        manifest = read(write_jsonl(tmp_path / "m.jsonl", [row]))
        assert manifest.rows == expected, written
        assert manifest.mapped == {(field, written): 1}


def test_the_normalised_text_of_a_pair_is_taken_and_reported(tmp_path):
    raw, normalised = "text_original", "text_normalized"
    row = {"audio": "a.wav", raw: "Dr. 5", normalised: "Doctor five", "speaker": "s"}
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [row]))
    assert [row.text for row in manifest.rows] == ["Doctor five"]
    assert (manifest.mapped, manifest.ignored_columns) == ({("text", normalised): 1}, {raw: 1})
    del row[normalised]
    assert read_row(tmp_path, row).text == "Dr. 5"


@pytest.mark.parametrize(
    "more",
    [
        {"duration": "3:20"},
        {"duration": -1, "start": None},
        {"channel": "Al Jazeera"},
        {"prompt_text": "cheerfully"},
        {"segment_id": "a", "clip_id": "b"},
    ],
    ids=str,
)
def test_columns_that_only_describe_cost_no_row(more, tmp_path):
    row = read_row(tmp_path, {**GOOD, "audio": "a.wav", **more})
    assert (row.audio, row.text, row.references) == (Recording("a.wav"), "words", ())
    manifest = read(tmp_path / "m.jsonl")
    assert set(manifest.ignored_columns) <= set(more)


def test_times_beside_embedded_audio_say_where_it_was_cut_from(tmp_path):
    """MLS and GigaSpeech: the audio in the file is the cut clip. Columns of our own names are what they say."""
    audio = [{"bytes": b"RIFF", "path": "a.wav"}] * 2
    for names, times in ((("begin_time", "end_time"), (None, None)), (("start", "end"), (3.0, 4.0))):
        table = {"audio": audio, "text": ["x"] * 2, "speaker": ["s"] * 2, names[0]: [3.0] * 2, names[1]: [4.0] * 2}
        pq.write_table(pa.table(table), tmp_path / "m.parquet")
        manifest = read(tmp_path / "m.parquet")
        assert {(row.audio.start_sec, row.audio.end_sec) for row in manifest.rows} == {times}
        assert set(manifest.ignored_columns) == (set(names) if times == (None, None) else set())


@pytest.mark.parametrize("marks", [MARKS, " <|audio_bos|> <|AUDIO|>\n<|audio_eos|> "])
def test_marks_of_an_audio_may_be_a_part_of_their_own(marks, tmp_path):
    turns = [("user", ["ref", marks]), ("assistant", ["r.wav"]), ("user", ["said"]), ("assistant", ["t.wav"])]
    row = read_row(tmp_path, conversation(*turns))
    assert (row.audio, row.text, row.text) == (Recording("t.wav"), "said", "said")
    assert row.references == ((Recording("r.wav"), "ref"),)


@pytest.mark.parametrize(
    ("before", "beside"),
    [
        ("said", {"ref_transcript": "ref", "target_text": "said"}),
        ("ref", {"ref_transcript": "ref", "target_text": "said"}),
        ("said", {"ref_transcript": "ref"}),
        ("ref", {"target_text": "said"}),
    ],
)
@pytest.mark.parametrize("in_misc", [True, False])
def test_a_row_says_beside_its_turns_whose_words_they_are(before, beside, in_misc, tmp_path):
    """As zero-shot pipelines write metadata.json into conversations: the target's words before the reference."""
    row = conversation(("user", [before, "r.wav"]), ("assistant", ["t.wav"]))
    found = read_row(tmp_path, {**row, **({"misc": beside} if in_misc else beside)})
    assert (found.audio, found.text, found.references) == (Recording("t.wav"), "said", ((Recording("r.wav"), "ref"),))
    said = conversation(("user", ["ref", "r.wav"]), ("assistant", ["said", "t.wav"]))
    assert read_row(tmp_path, {**said, "misc": beside}).text == "said", "the turns say it themselves"


@pytest.mark.parametrize("beside", [{}, {"target_text": "before"}, {"ref_text": "ref", "target_text": "said"}])
def test_a_row_that_leaves_open_whose_words_they_are_is_refused(beside, tmp_path):
    row = {**conversation(("user", ["before", "r.wav"]), ("assistant", ["t.wav"])), **beside}
    ((line, error),) = read(write_jsonl(tmp_path / "m.jsonl", [GOOD, row])).rejected
    assert (line, error.reason) == (2, "not_voice_cloning")
    assert ": no text of the " in error.found


@pytest.mark.parametrize(("count", "warned"), [(25, True), (5, False)])
def test_a_speaker_per_row_is_warned_of(count, warned, tmp_path, capsys):
    rows = [{"audio": f"{n}.wav", "text": "words", "speaker": f"sample_{n}"} for n in range(count)]
    manifest = read(write_jsonl(tmp_path / "m.jsonl", rows))
    show_manifest(manifest, build_clips(manifest, tmp_path), keep_system=False)
    assert ("each of 25 rows has a speaker of its own" in capsys.readouterr().out) == warned


def _places(value, path=()):
    """The path of each value inside a JSON value."""
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        yield from _places(inner, (*path, key))


ROWS = {
    "columns": {**GOOD, "start": 0.5, "duration": 1.0, "channel": 0, "reference_audio": "r.wav", "id": 7},
    "ChatML": {
        **conversation(("system", ["x"]), ("user", ["ref", "r.wav"]), ("assistant", ["said", "t.wav"])),
        "speaker": "s",
        "misc": {"ref_transcript": "ref", "speaker": "s"},
        "audios": ["u.wav"],
    },
    "lhotse": cut("a"),
}
STRANGE = st.sampled_from(
    [None, True, -1, 0, 10**400, float("nan"), float("inf"), "", "x", "nan", [], [None], {}, {"a": 1}]
)


@pytest.mark.parametrize("dialect", ROWS)
@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_value_of_any_kind_at_any_place_costs_its_row_at_most(dialect, data, tmp_path_factory):
    row = copy.deepcopy(ROWS[dialect])
    *place, key = data.draw(st.sampled_from([path for path in _places(row) if path]))
    inner = row
    for name in place:
        inner = inner[name]
    inner[key] = data.draw(STRANGE)
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "m.jsonl", [GOOD, row, GOOD | {"audio": "last.wav"}])
    try:
        manifest = read(path)
    except InputError:
        raise AssertionError(f"one row stops the run: {row}") from None
    good = [(row.line, row.audio.path) for row in manifest.rows if row.line != 2]
    assert good == [(1, "good.wav"), (3, "last.wav")]
    assert manifest.num_rows == 3


PARTS = st.lists(st.sampled_from(["x", "y", "r.wav", "t.wav"]), max_size=3)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), PARTS), max_size=4)


@given(turns=TURNS)
@settings(deadline=None, max_examples=300)
def test_no_audio_of_a_conversation_is_lost_and_no_word_is_made_up(turns, tmp_path_factory):
    """Every recording of the turns is in the row, with a text that stands in them; or the row is refused by line."""
    path = write_jsonl(tmp_path_factory.mktemp("turns") / "m.jsonl", [GOOD, conversation(*turns)])
    manifest = read(path)
    if manifest.rejected:
        return
    row = manifest.rows[1]
    parts = [part for _, own in turns for part in own]
    audios = [part for part in parts if part.endswith(".wav")]
    assert [recording.path for recording, _ in (*row.references, (row.audio, row.text))] == audios
    assert {said for _, said in row.recordings} <= {part for part in parts if not part.endswith(".wav")}
    assert turns[-1][0] == "assistant"
