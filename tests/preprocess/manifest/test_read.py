"""Dialects: what a row says reaches the corpus whoever wrote it; what can't be used is named by its line."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.console import show_manifest
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.columns import Row
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.preprocess.helpers import assert_parts, write_jsonl

ROWS = [
    {"audio": "a.wav", "text": "صباح الخير، كيف حالك؟", "speaker": "salma", "language": "ar", "id": "one"},
    {"audio": "b.wav", "text": 'قال: "نعم"', "reference_audio": "a.wav", "reference_text": "صباح الخير"},
]
EXPECTED = [
    Row(0, Recording("a.wav"), ROWS[0]["text"], "salma", "ar", "one"),
    Row(0, Recording("b.wav"), ROWS[1]["text"], references=((Recording("a.wav"), "صباح الخير"),)),
]


def read(path):
    return read_manifest(path, ["<|AUDIO_OUT|>", "<|eot_id|>"], DEFAULT_SYSTEM_TEXT)


def without_line(row):
    return Row(0, **{name: value for name, value in vars(row).items() if name != "line"})


def problem(path, line):
    (found,) = [error for number, error in read(path).rejected if number == line]
    return found


def test_columns_are_the_same_in_every_file_format(tmp_path):
    names = list({name: None for row in ROWS for name in row})
    write_jsonl(tmp_path / "m.jsonl", ROWS)
    (tmp_path / "m.json").write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    with open(tmp_path / "m.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(ROWS)
    lines = ["\t".join(names)] + ["\t".join(row.get(name, "") for name in names) for row in ROWS]
    (tmp_path / "m.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([{n: row.get(n) for n in names} for row in ROWS]), tmp_path / "m.parquet")
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        manifest = read(tmp_path / f"m.{suffix}")
        assert [without_line(row) for row in manifest.rows] == EXPECTED, suffix
        assert manifest.dialects == {"columns": 2}
        assert not manifest.rejected


def voice_cloning_row(**more):
    """As the ms-swift and Higgs worlds write it."""
    return {
        "messages": [
            {"role": "system", "content": "Be a voice."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "صباح الخير"},
                    {"type": "audio", "audio_url": "ref.wav"},
                    {"type": "text", "text": "Please generate speech for given text in the reference's voice"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "مساء النور"}, {"type": "audio", "audio_url": "target.wav"}],
            },
        ],
        **more,
    }


def canonical_row(num_references=1):
    messages = [{"role": "system", "content": DEFAULT_SYSTEM_TEXT}]
    for number in range(num_references):
        messages.append({"role": "user", "content": [{"type": "text", "text": f"نص {number}"}]})
        messages.append({"role": "assistant", "content": {"type": "audio", "audio_url": f"ref{number}.wav"}})
    messages.append({"role": "user", "content": "مساء النور"})
    messages.append({"role": "assistant", "content": [{"type": "audio", "audio_url": "target.wav"}]})
    return {"messages": messages}


def test_a_chatml_voice_cloning_row_names_its_reference(tmp_path):
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [voice_cloning_row(speaker="salma", start_index=2)]))
    (row,) = manifest.rows
    assert row == Row(
        1, Recording("target.wav"), "مساء النور", "salma", references=((Recording("ref.wav"), "صباح الخير"),)
    )
    assert manifest.dialects == {"ChatML": 1}
    assert manifest.own_system_texts == 1


def test_the_speaker_may_stand_in_misc(tmp_path):
    (row,) = read(write_jsonl(tmp_path / "m.jsonl", [voice_cloning_row(misc={"speaker": "omar"})])).rows
    assert row.speaker == "omar"


def kept(path):
    """The manifest read with --keep-system, for a tokenizer that has Boson's marks of a scene."""
    special = ["<|eot_id|>", "<|scene_desc_start|>", "<|scene_desc_end|>"]
    return read_manifest(path, special, DEFAULT_SYSTEM_TEXT, keep_system=True)


def with_system(content):
    row = voice_cloning_row()
    row["messages"][0]["content"] = content
    return row


def test_a_row_keeps_its_system_text_where_that_is_asked_for(tmp_path):
    scene = "Whisper.\n\n<|scene_desc_start|>\nA quiet room.\n<|scene_desc_end|>"
    texts = ["Be a voice.", [{"type": "text", "text": scene}], DEFAULT_SYSTEM_TEXT, ""]
    rows = [with_system(content) for content in texts] + [canonical_row()]
    manifest = kept(write_jsonl(tmp_path / "m.jsonl", rows))
    assert [row.system_text for row in manifest.rows] == ["Be a voice.", scene, None, None, None]
    assert manifest.own_system_texts == 2
    without = read(tmp_path / "m.jsonl")
    assert {row.system_text for row in without.rows} == {None}
    assert without.sha256 != manifest.sha256, "another folder: its prompts are others"


def test_a_system_turn_that_can_t_be_kept_is_refused_by_line(tmp_path):
    part = {"type": "text", "text": "Be a voice."}
    voice = {"type": "audio", "audio_url": "voice.wav"}
    rows = [with_system([part, part]), with_system([part, voice]), with_system("Speak.<|eot_id|>"), canonical_row()]
    path = write_jsonl(tmp_path / "m.jsonl", rows)
    errors = [error for _, error in kept(path).rejected]
    assert [(error.status, error.reason) for error in errors] == [("failed", "system_turn")] * 2 + [
        ("failed", "special_token")
    ]
    assert_parts(errors[1].record(), "m.jsonl line 2", "text, audio", "one text", "leave out --keep-system")
    assert_parts(errors[2].record(), "m.jsonl line 3", "<|eot_id|> in the system text", "only words", "Remove it")
    assert len(read(path).rows) == 4, "without the flag it is replaced"


def test_canonical_chatml_rows_with_two_references_and_with_none(tmp_path):
    rows = [canonical_row(2), {**canonical_row(0), "speaker": "huda"}]
    manifest = read(write_jsonl(tmp_path / "m.jsonl", rows))
    assert manifest.rows[0].references == ((Recording("ref0.wav"), "نص 0"), (Recording("ref1.wav"), "نص 1"))
    assert (manifest.rows[0].audio, manifest.rows[0].text) == (Recording("target.wav"), "مساء النور")
    assert (manifest.rows[1].references, manifest.rows[1].speaker) == ((), "huda")
    assert manifest.own_system_texts == 0


def test_ms_swift_rows_with_audio_marks_and_attached_files(tmp_path):
    row = {
        "messages": [
            {"role": "user", "content": "صباح الخير<audio>Generate speech in this voice"},
            {"role": "assistant", "content": "مساء النور<audio>"},
        ],
        "audios": ["ref.wav", "target.wav"],
    }
    (found,) = read(write_jsonl(tmp_path / "m.jsonl", [row])).rows
    assert found == Row(1, Recording("target.wav"), "مساء النور", references=((Recording("ref.wav"), "صباح الخير"),))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.pop(), "user: text, audio, text"),
        (lambda m: m[2]["content"].pop(0), "user: text, audio, text / assistant: audio"),
        (lambda m: m[1]["content"].pop(0), "user: audio, text / assistant: text, audio"),
        (lambda m: m.extend(m[1:]), "assistant: text, audio / user: text, audio, text"),
        (lambda m: m.clear(), "no turns"),
    ],
)
def test_chatml_of_another_shape_is_refused_by_line(change, found, tmp_path):
    row = voice_cloning_row()
    change(row["messages"])
    error = problem(write_jsonl(tmp_path / "m.jsonl", [canonical_row(), row]), 2)
    assert (error.status, error.reason) == ("failed", "not_voice_cloning")
    assert_parts(error, "m.jsonl line 2", found, "user: reference text, reference audio", "Rewrite the row")


def test_a_recipient_turn_is_refused(tmp_path):
    row = voice_cloning_row()
    row["messages"][2]["recipient"] = "all"
    error = problem(write_jsonl(tmp_path / "m.jsonl", [canonical_row(), row]), 2)
    assert error.reason == "recipient"
    assert_parts(error, "m.jsonl line 2", "a turn with a recipient", "no recipient", "Remove the row")


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"type": "audio", "audio_url": "", "raw_audio": "UklGRg=="}, "audio without a path"),
        ({"type": "audio", "audio_url": "a.wav", "offset": -1.5}, "offset -1.5, duration None"),
        ({"type": "image", "image_url": "x.png"}, "a part of type 'image'"),
    ],
)
def test_a_chatml_part_that_cannot_be_used_is_named(part, found, tmp_path):
    row = voice_cloning_row()
    row["messages"][2]["content"][1] = part
    assert found in problem(write_jsonl(tmp_path / "m.jsonl", [canonical_row(), row]), 2).found


def test_malformed_json_on_line_17_names_line_17(tmp_path):
    good = {"audio": "a.wav", "text": "نعم", "speaker": "s"}
    lines = [good] * 8 + [""] + [good] * 7 + ['{"audio": "b.wav", "text": "half'] + [good] * 3
    path = write_jsonl(tmp_path / "m.jsonl", lines)
    manifest = read(path)
    assert [line for line, _ in manifest.rejected] == [17]
    assert len(manifest.rows) == 18
    assert manifest.rows[-1].line == 20
    error = problem(path, 17)
    assert_parts(error, "m.jsonl line 17", "b.wav", "one JSON object per line", "Correct the line")


def test_lines_are_counted_across_quoted_line_breaks_and_array_elements(tmp_path):
    (tmp_path / "m.csv").write_text('audio,text,speaker\na.wav,"two\nlines",s\nb.wav,,s\nc.wav,yes,s\n')
    manifest = read(tmp_path / "m.csv")
    assert [row.line for row in manifest.rows] == [2, 5]
    assert [line for line, _ in manifest.rejected] == [4]
    (tmp_path / "m.json").write_text(
        '[\n{"audio": "a", "text": "x"},\n\n{"text":\n"y"}, {"audio": "c", "text": "z"}]'
    )
    manifest = read(tmp_path / "m.json")
    assert [row.line for row in manifest.rows] == [2, 5]
    assert [line for line, _ in manifest.rejected] == [4]


def test_a_stray_quote_in_tsv_does_not_swallow_lines(tmp_path):
    (tmp_path / "m.tsv").write_text('audio\ttext\tspeaker\na.wav\t"he said\ts\nb.wav\tyes\ts\n')
    assert [row.text for row in read(tmp_path / "m.tsv").rows] == ['"he said', "yes"]


@pytest.mark.parametrize(
    ("row", "status", "reason", "found"),
    [
        ({"audio": "a.wav", "text": " \u00a0"}, "screened", "empty_transcript", "the transcript"),
        ({"audio": "a.wav", "text": ""}, "screened", "empty_transcript", "the transcript ''"),
        ({"audio": "a.wav", "text": "hi <|eot_id|>"}, "failed", "special_token", "<|eot_id|>"),
        (
            {"audio": "a.wav", "text": "x", "reference_audio": "b.wav", "reference_text": "<|AUDIO_OUT|>"},
            "failed",
            "special_token",
            "<|AUDIO_OUT|>",
        ),
        ({"sound": "a.wav", "text": "hi"}, "failed", "missing_column", "no audio among the columns sound"),
        ({"audio": "a.wav", "words": "hi"}, "failed", "missing_column", "no text"),
        ({"audio": "a.wav", "text": 5}, "failed", "malformed_row", "text = 5"),
        (
            {"audio": "a.wav", "text": "x", "reference_text": "y"},
            "failed",
            "malformed_row",
            "without reference_audio",
        ),
        ('["a.wav", "hi"]', "failed", "malformed_row", "list"),
        ('{"audio": "a.wav", "text": "half \\ud83d"}', "failed", "broken_characters", "half"),
        ('{"audio": "\\ud800.wav", "text": "hi"}', "failed", "broken_characters", "ud800"),
        ({"audio": "a.wav", "text": "hi", "start": 10**400}, "failed", "malformed_row", "start = 1000"),
        ('{"a": ' * 50_000, "failed", "malformed_json", "not JSON"),
        ({"messages": [], "audios": 5}, "failed", "malformed_row", "audios = 5"),
        ({f"column{n}": 1 for n in range(10_000)}, "failed", "missing_column", "column39 and 9960 more"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, status, reason, found, tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", [{"audio": "x.wav", "text": "ok", "speaker": 12}, row])
    error = problem(path, 2)
    assert (error.status, error.reason) == (status, reason)
    assert error.where == "m.jsonl line 2"
    assert found in error.found
    assert error.expected
    assert error.action
    assert read(path).rows == [Row(1, Recording("x.wav"), "ok", "12")]


@pytest.mark.parametrize(("sign", "said"), [(";", "columns separated by ;"), ("\t", "columns separated by tabs")])
def test_a_csv_as_excel_saves_it_where_the_comma_is_a_decimal_one(sign, said, tmp_path):
    lines = ["\ufeffaudio; text ;speaker;;", 'a.wav;"one; two, three";s;;', "", "b.wav;four,five;s;;"]
    (tmp_path / "m.csv").write_text("\r\n".join(lines).replace(";", sign), encoding="utf-8", newline="")
    manifest = read(tmp_path / "m.csv")
    assert [(row.line, row.audio.path, row.text, row.speaker) for row in manifest.rows] == [
        (2, "a.wav", f"one{sign} two, three", "s"),
        (4, "b.wav", "four,five", "s"),
    ]
    assert manifest.dialects == {said: 2}


def test_a_comma_in_the_first_line_keeps_semicolons_as_text(tmp_path):
    (tmp_path / "m.csv").write_text("audio,text,speaker,a;b\na.wav,one; two,s,x;y\n")
    (row,) = read(tmp_path / "m.csv").rows
    assert row.text == "one; two"
    assert read(tmp_path / "m.csv").dialects == {"columns": 1}


def test_a_row_of_a_csv_with_too_many_or_too_few_values_is_named(tmp_path):
    (tmp_path / "m.csv").write_text("audio,text,speaker\na.wav,one,s\nb.wav,two, three,s\nc.wav\n,four,s\n")
    manifest = read(tmp_path / "m.csv")
    assert [row.text for row in manifest.rows] == ["one"]
    found = {line: (error.reason, error.found) for line, error in manifest.rejected}
    assert found == {
        3: ("malformed_row", "1 more values than there are columns"),
        4: ("missing_value", "nothing in the column text"),
        5: ("missing_value", "nothing in the column audio"),
    }


def test_ids_that_are_there_twice_are_told(tmp_path, capsys):
    rows = [{"audio": f"{n}.wav", "text": "x", "speaker": "s", "id": name} for n, name in enumerate("abcab")]
    manifest = read(write_jsonl(tmp_path / "m.jsonl", rows))
    assert manifest.repeated_ids == ["a", "b"]
    show_manifest(manifest, build_clips(manifest, tmp_path), keep_system=False)
    assert "  2 ids are in more than one row (nothing is merged by id): a, b\n" in capsys.readouterr().out


def test_a_speakers_name_has_one_spelling_and_capitals_are_told(tmp_path, capsys):
    """Spaces round it and its Unicode form make no other voice: else one half of it could be held out."""
    names = [" salma", "salma", "Salma", "Jos\u00e9  M", "Jose\u0301 M "]
    rows = [{"audio": f"{n}.wav", "text": "x", "speaker": name} for n, name in enumerate(names)]
    rows += [{**voice_cloning_row(speaker="Jose\u0301 M")}]
    manifest = read(write_jsonl(tmp_path / "m.jsonl", rows))
    assert [row.speaker for row in manifest.rows] == ["salma", "salma", "Salma", *["Jos\u00e9 M"] * 3]
    show_manifest(manifest, build_clips(manifest, tmp_path), keep_system=False)
    told = "  1 names differ only in capitals and count as several speakers: Salma / salma\n"
    assert told in capsys.readouterr().out


def test_columns_that_are_not_used_are_reported(tmp_path):
    rows = [{"audio": "a.wav", "text": "x", "speaker": "s", "emotion": "calm"}] * 3
    assert read(write_jsonl(tmp_path / "m.jsonl", rows)).ignored_columns == {"emotion": 3}


@pytest.mark.parametrize(
    ("name", "text", "found", "action"),
    [
        ("m.jsonl", None, "no such file", "--manifest"),
        ("m.txt", "x", "a .txt file", "--manifest"),
        ("m.jsonl", "", "no row that can be used, of 0", "the file has no rows"),
        ("m.jsonl", "{\n{\n", "no row that can be used, of 2", "m.jsonl line 1"),
        ("m.jsonl", " \n\n", "no row that can be used, of 0", "the file has no rows"),
        ("m.json", "[]", "no row that can be used, of 0", "the file has no rows"),
        ("m.csv", "", "no row that can be used, of 0", "the file has no rows"),
        ("m.csv", "audio,text,speaker\n", "no row that can be used, of 0", "the file has no rows"),
        ("m.csv", "\nwav;words\na.wav;hi\n", "no row that can be used, of 1", "among the columns wav, words"),
        ("m.csv", "\naudio\na.wav\n", "a single column, 'audio'", "correct the file's extension"),
        (
            "m.tsv",
            "audio,text,speaker\na.wav,hi,s\n",
            "a single column, 'audio,text,speaker'",
            "the file's extension",
        ),
        ("m.csv", "audio,text,id,text,id\na.wav,hi,1,ho,2\n", "more than one column id, text", "Rename all but one"),
        ("m.json", '[{"audio": "a"},\n{"audio" "b"}]', "broken JSON", "Correct it"),
    ],
)
def test_a_manifest_of_which_nothing_can_be_used_is_refused(name, text, found, action, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert_parts(caught.value, name, found, "", action)


def test_an_arabic_csv_that_is_no_utf8_costs_its_rows_and_no_letter_is_lost_in_silence(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes("audio,text,speaker\na.wav,ok مرحبا,x\nb.wav,ok,x\n".encode("cp1256"))
    error = problem(path, 2)
    assert (error.status, error.reason) == ("failed", "broken_characters")
    assert "CSV UTF-8" in error.action
    assert [row.text for row in read(path).rows] == ["ok"]


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("m.csv", "audio,text\n".encode("utf-16"), "UTF-16"),
        ("m.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("m.json", b"[" * 100_000, "broken JSON"),
        ("m.parquet", b"", "can't be read"),
        ("m.parquet", b"PAR1 and no more", "can't be read"),
    ],
)
def test_a_manifest_that_cannot_be_read_at_all_is_refused(name, data, found, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=found):
        read(tmp_path / name)


def test_a_parquet_file_with_a_broken_page_is_refused(tmp_path):
    path = tmp_path / "m.parquet"
    table = pa.table({"audio": ["a.wav"] * 999, "text": [f"words {n}" for n in range(999)]})
    pq.write_table(table, path, use_dictionary=False, compression="snappy")
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 99] = b"Z" * 99
    path.write_bytes(data)
    with pytest.raises(InputError, match="can't be read"):
        read(path)
