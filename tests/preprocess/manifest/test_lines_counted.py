"""Every line of a manifest is read, refused by its number, or blank, whatever is wrong in it or in another line."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preprocess.common.errors import InputError, Rejected
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.delimited import _count_lines, _split_lines
from preprocess.manifest.read import read_manifest
from preprocess.manifest.tables import read_records
from tests.preprocess.helpers import assert_parts

COLUMNS = ["audio", "text", "speaker"]


def read(path):
    return read_manifest(path, ["<|eot_id|>"], DEFAULT_SYSTEM_TEXT)


def read_text(path, text):
    """{line: values of its row, or None for a line that is refused} of a file with this text."""
    path.write_text(text, encoding="utf-8", newline="")
    return {
        line: None if isinstance(record, Rejected) else list(record.values()) for line, record in read_records(path)
    }


def as_csv(rows, **how):
    file = io.StringIO()
    csv.writer(file, **how).writerows([COLUMNS, *rows])
    return file.getvalue()


WORDS = st.text(st.sampled_from("ab ,;\t\"\\|'اب\u00a0\u2028"), max_size=12)
ROWS = st.lists(st.tuples(st.sampled_from(["a.wav", "b/c.wav", "d,e.wav"]), WORDS, st.sampled_from(["s", "t"])))
WAYS = {
    "csv": {"lineterminator": "\n"},
    "csv of Windows": {"lineterminator": "\r\n"},
    "csv with all in quotes": {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"},
    "csv with ;": {"delimiter": ";", "lineterminator": "\n"},
    "tsv of pandas": {"delimiter": "\t", "lineterminator": "\n"},
}


@pytest.mark.parametrize("way", WAYS)
@given(rows=ROWS)
@settings(deadline=None, max_examples=60)
def test_what_the_csv_module_writes_is_read_as_it_was(way, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / ("m.tsv" if "tsv" in way else "m.csv")
    rows = [row for row in rows if not row[1].endswith("\\")]
    texts = [values[1] for values in read_text(path, as_csv(rows, **WAYS[way])).values()]
    assert texts == [text for _, text, _ in rows]


@pytest.mark.parametrize("way", WAYS)
@given(rows=ROWS.filter(bool), data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_sign_too_many_or_too_few_in_one_line_changes_no_other_row(way, rows, data, tmp_path_factory):
    """A quote or a backslash more, or a sign less: all other lines are read as they were, or refused by number."""
    path = tmp_path_factory.mktemp("table") / ("m.tsv" if "tsv" in way else "m.csv")
    rows = [row for row in rows if not row[1].endswith("\\")]
    lines = as_csv(rows, **WAYS[way]).split("\n")
    before = read_text(path, "\n".join(lines))
    number = data.draw(st.integers(2, max(len(lines) - 1, 2)))
    line = lines[number - 1]
    place = data.draw(st.integers(0, len(line)))
    sign = data.draw(st.sampled_from(['"', "\\", ""]))
    lines[number - 1] = line[:place] + sign + line[place + (not sign) :]
    after = read_text(path, "\n".join(lines))
    for other in before.keys() - {number}:
        assert after[other] in (before[other], None)


@given(data=st.binary(max_size=200) | st.text('a,"\n\r\t;\\', max_size=60).map(str.encode))
@example(data=b'a,b\n1,"2\n3\n4,5\n"')
@settings(deadline=None, max_examples=300)
def test_rows_and_refused_and_blank_lines_are_all_lines_of_any_bytes(data, tmp_path_factory):
    for name in ("m.csv", "m.tsv"):
        path = tmp_path_factory.mktemp("table") / name
        text = data.decode(errors="replace")
        try:
            rows = _count_lines(text, path)  # asserts that it has counted each line
        except InputError:
            continue
        lines = _split_lines(text)
        assert "".join(lines) == text
        taken = [line for first, _, num_lines in rows for line in range(first, first + num_lines)]
        assert len(taken) == len(set(taken))
        first_row = min(taken, default=len(lines) + 1)
        blank = [n for n, line in enumerate(lines, 1) if n >= first_row and not line.strip(",;\t \r\n")]
        if rows:
            assert set(taken) | set(blank) >= set(range(first_row, len(lines) + 1))


@given(lines=st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), min_size=2, max_size=8))
@example(lines=[b'{"audio": "a.wav"}', b"", b"{", b"[1]", b"NaN"])
@settings(deadline=None, max_examples=200)
def test_each_line_of_jsonl_is_a_record_or_refused_or_blank(lines, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "m.jsonl"
    path.write_bytes(b'{"audio": "first.wav"}\n' + b"\n".join(lines))
    found = [line for line, _ in read_records(path)]
    blank = [number for number, line in enumerate(lines, start=2) if not line.strip()]
    assert sorted([*found, *blank]) == list(range(1, len(lines) + 2))


def test_one_quote_that_is_never_closed_costs_its_line(tmp_path):
    """300 rows; the quote of row 51 is never closed. Read by the csv module, 249 rows would vanish."""
    lines = [f"{n}.wav,words of row {n},s" for n in range(300)]
    lines[51] = '51.wav,"words of row 51,s'
    (tmp_path / "m.csv").write_text("audio,text,speaker\n" + "\n".join(lines) + "\n")
    manifest = read(tmp_path / "m.csv")
    assert len(manifest.rows) == 299
    ((line, error),) = manifest.rejected
    assert line == 53
    assert_parts(error, "m.csv line 53", "a quote that is never closed", "before the next row", "Correct the row")


OUT_OF_STEP = {
    "two quotes, each without a partner": 'a.wav,"one,s\nb.wav,two,s\nc.wav,three",s\nd.wav,four,s\n',
    "text behind a closing quote": 'a.wav,"one" two,s\nb.wav,two,s\n',
    "a quote within a quoted field": 'a.wav,"he said "hi" to me",s\nb.wav,two,s\n',
    "open at the end of the file": 'a.wav,one,s\nb.wav,"two,s',
    "a field that holds rows": 'a.wav,"one\nb.wav,two,s\nc.wav,three",s\n',
    "a field that holds half a row": 'a.wav,"one,s\nb.wav,two",s\n',
    "a row that goes on after a backslash": "a.wav,one\\\ntwo,s\nb.wav,two,s\n",
}


@pytest.mark.parametrize("case", OUT_OF_STEP)
def test_a_row_out_of_step_is_refused_and_no_text_is_another(case, tmp_path):
    rows = read_text(tmp_path / "m.csv", "audio,text,speaker\n" + OUT_OF_STEP[case])
    assert None in rows.values()
    whole = [values for values in rows.values() if values and None not in values]
    assert all(values[1] in ("one", "two", "three", "four") for values in whole)
    assert len(rows) == OUT_OF_STEP[case].rstrip().count("\n") + 1, "each line is named"


def test_quotes_escaped_by_a_backslash_as_mysql_and_spark_write_them_are_read(tmp_path):
    text = 'audio,text,speaker\na.wav,"he said \\"hi, you\\" to me",s\nb.wav,"one, \\"",s\nc.wav,C:\\dir,s\n'
    rows = read_text(tmp_path / "m.csv", text)
    assert [values[1] for values in rows.values()] == ['he said "hi, you" to me', 'one, "', "C:\\dir"]


def test_quotes_that_pandas_leaves_in_tsv_come_off_and_those_of_speech_stay(tmp_path):
    text = "\n".join(
        (
            "audio\ttext\tspeaker",
            'a.wav\t"he said ""hi"""\ts',
            'b.wav\t"one\ttwo"\ts',
            'c.wav\t"three\nfour"\ts',
            'd.wav\t"Hello, he said.\ts',
            'e.wav\t"Yes" and "no"\ts',
            'f.wav\tbye"\ts',
        )
    )
    rows = read_text(tmp_path / "m.tsv", text)
    assert [values[1] for values in rows.values()] == [
        'he said "hi"',
        "one\ttwo",
        "three\nfour",
        '"Hello, he said.',
        '"Yes" and "no"',
        'bye"',
    ]


@pytest.mark.parametrize("last", ["text", "speaker"])
def test_a_text_of_two_lines_in_tsv_is_never_half_of_it(last, tmp_path):
    """With the text as the last column, its first line has all columns."""
    if last == "text":
        text = 'audio\tspeaker\ttext\na.wav\ts\t"one\ntwo"\nb.wav\ts\t"three\nfour\tfive"\nc.wav\ts\tsix\n'
        texts = {2: ["a.wav", "s", "one\ntwo"], 4: None, 6: ["c.wav", "s", "six"]}
    else:
        text = 'audio\ttext\tspeaker\na.wav\t"one\ntwo"\ts\nb.wav\tsix\ts\n'
        texts = {2: ["a.wav", "one\ntwo", "s"], 4: ["b.wav", "six", "s"]}
    rows = read_text(tmp_path / "m.tsv", text)
    assert {line: rows[line] for line in texts} == texts


def test_the_separator_that_excel_names_is_the_separator(tmp_path):
    rows = read_text(tmp_path / "m.csv", "sep=;\r\naudio;text, written;speaker\r\na.wav;one, two;s\r\n")
    assert rows == {3: ["a.wav", "one, two", "s"]}


def test_empty_cells_behind_the_columns_and_empty_rows_cost_nothing(tmp_path):
    rows = read_text(tmp_path / "m.csv", "audio,text,speaker\na.wav,one,s,,\n,,,,\n\nb.wav,two,s,more,\n")
    assert rows == {2: ["a.wav", "one", "s"], 5: None}


@pytest.mark.parametrize("name", ["data", "rows", "anything"])
def test_an_object_around_the_rows_is_read(name, tmp_path):
    """Printed on many lines or one; rows are named by their line."""
    rows = [{"audio": f"{n}.wav", "text": "one", "speaker": "s", "words": [{"from": 1}]} for n in range(3)]
    whole = {"version": "1", "of": {name: [{}]}, name: rows, "tail": []}
    for indent in (None, 1):
        path = tmp_path / "m.json"
        path.write_text("\n" + json.dumps(whole, indent=indent))
        manifest = read(path)
        assert [row.audio.path for row in manifest.rows] == ["0.wav", "1.wav", "2.wav"]
        lines = path.read_text().split("\n")
        assert indent is None or all(lines[row.line].strip().startswith('"audio"') for row in manifest.rows)


def test_a_single_row_with_a_list_is_a_row(tmp_path):
    row = {"audio": "a.wav", "text": "one", "speaker": "s", "words": [{"from": 1}]}
    for indent in (None, 1):
        (tmp_path / "m.json").write_text(json.dumps(row, indent=indent))
        assert [row.text for row in read(tmp_path / "m.json").rows] == ["one"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": [{"audio": "a.wav"}], "b": [{"audio": "b.wav"}]}', "2 lists of objects, under a, b"),
        ('{"a": [{"audio": "a.wav"}], "a": [{"audio": "b.wav"}]}', "2 lists of objects, under a"),
        ('{"audio": ["a.wav"], "text": ["one"]}', "a table written by columns: audio, text"),
        ('{"audio": {"0": "a.wav"}, "text": {"0": "one"}}', "a table written by columns: audio, text"),
        ('[{"audio": "a.wav", "text": "one", "speaker": "s"}]\n{"audio": "b.wav"}', "behind the end of the array"),
        ('[{"audio": "a.wav", "text": "one", "speaker": "s"}', "broken JSON"),
    ],
)
def test_json_of_which_rows_would_be_lost_is_refused(text, found, tmp_path):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "m.json")
    assert found in caught.value.found


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_a_key_twice_costs_its_row(name, tmp_path):
    rows = [
        '{"audio": "a.wav", "text": "one", "text": "two", "speaker": "s"}',
        '{"audio": "b.wav", "text": "one", "speaker": "s"}',
        '{"audio": "c.wav", "text": "one", "speaker": "s", "more": {"a": 1, "a": 1}}',
    ]
    (tmp_path / name).write_text("[" + ",\n".join(rows) + "]" if name == "m.json" else "\n".join(rows))
    manifest = read(tmp_path / name)
    assert [row.audio.path for row in manifest.rows] == ["b.wav"]
    assert [(line, error.found) for line, error in manifest.rejected] == [
        (1, "more than one value of text"),
        (3, "more than one value of a"),
    ]


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.json"])
def test_gzipped_text_is_read_and_damaged_gzip_is_refused(name, tmp_path):
    sign = "\t" if name == "m.tsv" else ","
    table = f"audio{sign}text{sign}speaker\na.wav{sign}one{sign}s\n"
    text = '{"audio": "a.wav", "text": "one", "speaker": "s"}\n' if "json" in name else table
    packed = gzip.compress(text.encode())
    path = tmp_path / f"{name}.gz"
    path.write_bytes(packed)
    assert [row.text for row in read(path).rows] == ["one"]
    for damaged in (packed[:-9], packed[:20] + b"\xff" * 8 + packed[28:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            read(path)
        assert_parts(caught.value, str(path), "can't be read", "a whole text file", "Copy the file again")
