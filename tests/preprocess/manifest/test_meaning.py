"""What a cell or a column means: missing values, numbers as names, times, and the names that corpora use."""

import csv
import itertools
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.console import show_manifest
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.field_names import OTHER_NAMES, parse_columns
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.preprocess.helpers import assert_parts, write_jsonl

GOOD = {"audio": "good.wav", "text": "words", "speaker": "good"}
NONE = [None, math.nan, "", "  ", "nan", "NaN", "None", " null ", "NULL", "N/A", "n/a", "<NA>", "\\N"]


def read(path, columns="", **how):
    return read_manifest(path, ["<|eot_id|>"], DEFAULT_SYSTEM_TEXT, parse_columns(columns), **how)


def read_row(tmp_path, **values):
    """The Row of these values beside audio and text."""
    row = {"audio": "a.wav", "text": "words", **values}
    rows = read(write_jsonl(tmp_path / "m.jsonl", [GOOD, row])).rows
    return next(row for row in rows if row.line == 2)


def refusal(tmp_path, row):
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [GOOD, row]))
    ((line, error),) = manifest.rejected
    assert line == 2
    return error


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_a_missing_value_is_none_however_it_is_written(value, tmp_path):
    row = read_row(tmp_path, speaker=value, id=value, language=value, start=value, end=value, channel=value)
    assert (row.speaker, row.id, row.language, row.audio) == (None, None, None, Recording("a.wav"))
    row = read_row(tmp_path, reference_audio=value, reference_text=value)
    assert row.references == ()
    row = read_row(tmp_path, reference_audio="r.wav", reference_text=value)
    assert row.references == ((Recording("r.wav"), None),)
    chatml = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "audio", "audio_url": "a"}]},
    ]
    (row,) = read(write_jsonl(tmp_path / "m.jsonl", [{"messages": chatml, "speaker": value, "id": value}])).rows
    assert (row.speaker, row.id) == (None, None)
    (row,) = read(write_jsonl(tmp_path / "m.jsonl", [{"messages": chatml, "misc": {"speaker": value}}])).rows
    assert row.speaker is None


@pytest.mark.parametrize("value", [value for value in NONE if value not in ("", "  ")], ids=repr)
def test_a_missing_path_is_no_file_of_that_name(value, tmp_path):
    assert refusal(tmp_path, {"audio": value, "text": "x", "speaker": "s"}).reason == "missing_value"


def test_a_word_for_a_missing_value_may_be_a_transcript(tmp_path):
    assert read_row(tmp_path, text="None").text == "None"
    assert refusal(tmp_path, {"audio": "a.wav", "text": math.nan, "speaker": "s"}).reason == "missing_value"


def test_words_for_missing_values_are_reported(tmp_path, capsys):
    rows = [{**GOOD, "speaker_id": name} for name in ("nan", "None", "salma")]
    rows = [{k: v for k, v in row.items() if k != "speaker"} for row in rows]
    manifest = read(write_jsonl(tmp_path / "m.jsonl", rows))
    assert manifest.none_words == {"speaker_id": 2}
    show_manifest(manifest, build_clips(manifest, tmp_path), keep_system=False)
    assert "  2 rows say nan, None or the like as speaker_id: they have none\n" in capsys.readouterr().out


@given(number=st.integers(-(10**6), 10**6))
@settings(deadline=None, max_examples=50)
def test_a_number_is_one_name_in_every_format(number, tmp_path_factory):
    """pandas writes 7 as 7.0 where another row of the column has none."""
    folder = tmp_path_factory.mktemp("numbers")
    found = {read_row(folder, speaker=value).speaker for value in (number, float(number), str(number), f"{number}.0")}
    table = {"audio": ["a.wav"] * 2, "text": ["x"] * 2, "speaker": [float(number), None]}
    pq.write_table(pa.table(table), folder / "m.parquet")
    found.add(read(folder / "m.parquet").rows[0].speaker)
    (folder / "m.csv").write_text(f"audio,text,speaker\na.wav,x,{float(number)}\n")
    found.add(read(folder / "m.csv").rows[0].speaker)
    assert found == {str(number)}


@pytest.mark.parametrize("name", ["7.5", "7.00", "v1.0", "1.0.0", "007"])
def test_names_that_are_no_whole_numbers_stay_as_they_are(name, tmp_path):
    assert read_row(tmp_path, speaker=name).speaker == name


@pytest.mark.parametrize("value", [True, False, math.inf, ["salma"], {"name": "salma"}], ids=repr)
@pytest.mark.parametrize("field", ["speaker", "id", "language"])
def test_what_is_no_name_is_refused(field, value, tmp_path):
    error = refusal(tmp_path, {**GOOD, "audio": "a.wav", field: value})
    assert (error.reason, field in error.found) == ("malformed_row", True)


@pytest.mark.parametrize(("field", "name"), [(field, n) for field, names in OTHER_NAMES.items() for n in names])
def test_usual_names_of_columns_need_no_flag(field, name, tmp_path):
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
    assert manifest.mapped == {("text", normalised): 1}
    assert manifest.ignored_columns == {raw: 1}
    del row[normalised]
    assert [row.text for row in read(write_jsonl(tmp_path / "m.jsonl", [row])).rows] == ["Dr. 5"]


@pytest.mark.parametrize("field", [field for field in OTHER_NAMES if field != "id"])
def test_two_usual_names_of_a_field_are_not_guessed_at(field, tmp_path):
    first, second = OTHER_NAMES[field][:2]
    row = {"audio": "a.wav", "text": "x", "speaker": "s", "reference_audio": "r.wav", "start": 0.0}
    row = {k: v for k, v in row.items() if k != field} | {first: "1", second: "1"}
    path = write_jsonl(tmp_path / "m.jsonl", [row])
    with pytest.raises(InputError) as caught:
        read(path)
    assert_parts(
        caught.value, f"{first}, {second}", f"2 that may be the {field}", "one", f"--columns {field}={first}"
    )
    assert read(path, f"{field}={second}").mapped[field, second] == 1


def test_a_prompt_without_its_recording_is_no_reference(tmp_path):
    """`prompt_text` alone says how to speak."""
    path = write_jsonl(tmp_path / "m.jsonl", [{**GOOD, "prompt_text": "cheerfully"}])
    manifest = read(path)
    assert (manifest.rows[0].references, manifest.ignored_columns) == ((), {"prompt_text": 1})


START = ("start", "offset", "begin_time")


@pytest.mark.parametrize("start", START)
@given(start_ms=st.integers(0, 10**6), duration_ms=st.integers(1, 10**5))
@settings(deadline=None, max_examples=30)
def test_a_duration_beside_a_start_gives_the_end(start, start_ms, duration_ms, tmp_path_factory):
    """Else every clip of a long recording would go on to its end, under its own short text."""
    folder = tmp_path_factory.mktemp("times")
    start_sec, duration_sec = start_ms / 1000, duration_ms / 1000
    row = read_row(folder, **{start: start_sec, "duration": duration_sec})
    assert (row.audio.start_sec, row.audio.end_sec) == (start_sec, start_sec + duration_sec)
    row = read_row(folder, **{start: start_sec, "duration": 99.0, "end": start_sec + duration_sec})
    assert row.audio.end_sec == start_sec + duration_sec, "a given end counts"


@pytest.mark.parametrize("name", ["start_ms", "End MS", "offset_samples", "start_frame"])
def test_times_in_another_unit_are_refused(name, tmp_path):
    """Not known, they would leave a whole recording under the text of each part."""
    with pytest.raises(InputError) as caught:
        read_row(tmp_path, **{name: 100})
    assert_parts(caught.value, "columns", name, "start and end in seconds", "Write them in seconds")
    assert read_row(tmp_path, **{name: 100, "start": 0.1, "end": 0.2}).audio == Recording("a.wav", 0.1, 0.2)


@pytest.mark.parametrize("more", [{"duration": 3.0}, {"duration": 3.0, "start": None}, {"duration": "3:20"}])
def test_a_duration_alone_describes_the_file(more, tmp_path):
    assert read_row(tmp_path, **more).audio == Recording("a.wav")


@pytest.mark.parametrize(
    "times",
    [
        *({"start": start, "end": end} for start, end in [(0.2, 0), (0.2, 0.2), (0, 0), (None, 0), (2, "1.5")]),
        *({"offset": 0.2, "duration": duration} for duration in (0, -1.0, "short", True)),
        *({"start": start} for start in (-0.1, True, "0,5", "1:02", math.inf, [1])),
    ],
    ids=str,
)
def test_times_that_make_no_sense_are_refused(times, tmp_path):
    error = refusal(tmp_path, {**GOOD, "audio": "a.wav", **times})
    assert error.reason == "malformed_row"
    assert "an end after the start" in error.expected or "in seconds, 0 or more" in error.expected


def test_times_beside_embedded_audio_say_where_it_was_cut_from(tmp_path):
    """MLS and GigaSpeech: the audio in the file is the cut clip. Columns of our own names are what they say."""
    audio = [{"bytes": b"RIFF", "path": "a.wav"}] * 2
    for names, times in ((("begin_time", "end_time"), (None, None)), (("start", "end"), (3.0, 4.0))):
        table = {"audio": audio, "text": ["x"] * 2, "speaker": ["s"] * 2, names[0]: [3.0] * 2, names[1]: [4.0] * 2}
        pq.write_table(pa.table(table), tmp_path / "m.parquet")
        manifest = read(tmp_path / "m.parquet")
        assert {(row.audio.start_sec, row.audio.end_sec) for row in manifest.rows} == {times}
        assert set(manifest.ignored_columns) == (set(names) if times == (None, None) else set())


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0"])
def test_a_row_picks_its_channel(value, tmp_path):
    assert read_row(tmp_path, channel=value).audio == Recording("a.wav", channel=1)


@pytest.mark.parametrize("value", [-1, 0.5, "1.5", True, [0], math.inf, "left", " B "], ids=repr)
def test_what_is_no_number_of_a_channel_is_refused(value, tmp_path):
    error = refusal(tmp_path, {**GOOD, "audio": "a.wav", "channel": value})
    assert_parts(error, "m.jsonl line 2", "channel = ", "a channel's number, from 0", "Correct the row")


def test_the_name_of_a_television_channel_is_none(tmp_path):
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [{**GOOD, "channel": "Al Jazeera"}]))
    assert (manifest.rows[0].audio, manifest.ignored_columns) == (Recording("good.wav"), {"channel": 1})


def test_the_same_values_are_the_same_row_in_csv_json_and_parquet(tmp_path):
    """Numbers, missing values and times, as each format's own writer writes them."""
    rows = [
        {"audio_filepath": f"{n}.wav", "text": "x", "offset": float(n), "duration": 1.5, "speaker_id": speaker}
        for n, speaker in enumerate((3, None, 12))
    ]
    write_jsonl(tmp_path / "m.jsonl", rows)
    (tmp_path / "m.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for name, sign in (("m.csv", ","), ("m.tsv", "\t")):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=sign)
            writer.writeheader()
            writer.writerows(rows)
    found = [
        [(row.audio, row.text, row.speaker) for row in read(tmp_path / f"m.{suffix}").rows]
        for suffix in ("jsonl", "json", "parquet", "csv", "tsv")
    ]
    assert found[0] == [(Recording(f"{n}.wav", n, n + 1.5), "x", name) for n, name in enumerate(("3", None, "12"))]
    assert all(one == other for one, other in itertools.pairwise(found))
