"""Files with `|` between columns are read by what the columns hold; where that is open, the command asks."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.common.errors import InputError
from preprocess.console import show_manifest
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.field_names import parse_columns
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.preprocess.helpers import assert_parts

IDS = [f"utt{n}" for n in range(12)]
TEXTS = [
    "hello there",
    "مرحبا بكم",
    "good morning to you",
    "no",
    "see you at 5",
    "one, two",
    "yes",
    "كيف حالك اليوم",
] + [f"sentence number {n}" for n in range(4)]
NORMALISED = [text.replace("5", "five") for text in TEXTS]
VOICES = ["sam", "ann", "sam", "p225"] * 3
LANGUAGES = ["en", "ar"] * 6


def read(path, columns="", **how):
    return read_manifest(path, ["<|eot_id|>"], DEFAULT_SYSTEM_TEXT, parse_columns(columns), **how)


def corpus(tmp_path, *columns, name="metadata.csv", header="", place="wavs/{}.wav"):
    """A corpus folder whose manifest has these columns, and an empty file per recording."""
    folder = tmp_path / "my voice"
    for id_ in IDS:
        path = folder / place.format(id_)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    lines = ["|".join(fields) for fields in zip(*columns, strict=True)]
    (folder / name).write_text("\n".join([header, *lines] if header else lines) + "\n", encoding="utf-8")
    return folder / name


def found(manifest):
    assert not manifest.rejected, manifest.rejected[0]
    return [(row.audio.path, row.text, row.speaker, row.language) for row in manifest.rows]


PATHS = [f"wavs/{id_}.wav" for id_ in IDS]
NOTHING = [None] * 12
FOLDER = ["my voice"] * 12
SHAPES = {
    "LJSpeech": ((IDS, TEXTS, NORMALISED), NORMALISED, FOLDER, NOTHING),
    "LJSpeech without the third": ((IDS, TEXTS), TEXTS, FOLDER, NOTHING),
    "piper": ((IDS, VOICES, TEXTS), TEXTS, VOICES, NOTHING),
    "XTTS": ((PATHS, TEXTS, VOICES), TEXTS, VOICES, NOTHING),
    "F5": ((PATHS, TEXTS), TEXTS, FOLDER, NOTHING),
    "VITS": ((PATHS, [str(ord(name[0]) % 7) for name in VOICES], TEXTS), TEXTS, ["3", "6", "3", "0"] * 3, NOTHING),
    "GPT-SoVITS": ((PATHS, VOICES, LANGUAGES, TEXTS), TEXTS, VOICES, LANGUAGES),
    "Coqui": ((PATHS, TEXTS, NORMALISED, VOICES), NORMALISED, VOICES, NOTHING),
    "an id beside the path": ((IDS, PATHS, VOICES, TEXTS), TEXTS, VOICES, NOTHING),
    "one voice, named": ((IDS, ["sam"] * 12, TEXTS), TEXTS, ["sam"] * 12, NOTHING),
    "the text first": ((TEXTS, VOICES, PATHS), TEXTS, VOICES, NOTHING),
    "an empty column": ((PATHS, [""] * 12, TEXTS), TEXTS, FOLDER, NOTHING),
}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.txt", "train.list"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_without_a_header_is_read_by_what_it_holds(shape, name, tmp_path):
    columns, texts, voices, languages = SHAPES[shape]
    path = corpus(tmp_path, *columns, name=name)
    rows = list(zip(PATHS, texts, voices, languages, strict=True))
    assert found(read(path)) == rows
    assert found(read(path, speaker="salma")) == [
        (*row[:2], "salma" if row[2] == "my voice" else row[2], row[3]) for row in rows
    ]


def test_the_folder_of_a_corpus_is_enough(tmp_path):
    path = corpus(tmp_path, IDS, VOICES, TEXTS, name="metadata.txt")
    assert found(read(path.parent)) == found(read(path))


@pytest.mark.parametrize("place", ["wavs/{}.flac", "audio/{}.mp3", "{}.wav", "clips/{}.opus", "wavs/{}"])
def test_recordings_are_found_where_they_lie(place, tmp_path):
    path = corpus(tmp_path, IDS, TEXTS, NORMALISED, place=place)
    assert [row.audio.path for row in read(path).rows] == [place.format(id_) for id_ in IDS]
    elsewhere = tmp_path / "list.csv"
    elsewhere.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="--audio-root"):
        read(elsewhere)
    assert found(read(elsewhere, audio_root=path.parent, speaker="my voice")) == found(read(path))


def test_paths_of_recordings_that_are_not_there_are_left_to_their_rows(tmp_path):
    path = corpus(tmp_path, [f"gone/{id_}.wav" for id_ in IDS], VOICES, TEXTS)
    assert [row.audio.path for row in read(path).rows] == [f"gone/{id_}.wav" for id_ in IDS]
    path = corpus(tmp_path, [f"gone{n}" for n in range(12)], TEXTS)
    assert [row.audio.path for row in read(path).rows] == [f"wavs/gone{n}.wav" for n in range(12)]


def test_a_file_name_beside_the_folder_of_the_recordings_is_found(tmp_path):
    path = corpus(tmp_path, [f"{id_}.wav" for id_ in IDS], TEXTS, VOICES)
    assert [row.audio.path for row in read(path).rows] == PATHS


@pytest.mark.parametrize(
    "header", ["audio_file|text|speaker_name", "Path|Transcript|Speaker ID", "file|sentence|spk"]
)
def test_a_header_names_the_columns(header, tmp_path):
    path = corpus(tmp_path, PATHS[:2], TEXTS[:2], VOICES[:2], header=header)
    assert found(read(path)) == list(zip(PATHS[:2], TEXTS[:2], VOICES[:2], [None] * 2, strict=True))
    path = corpus(tmp_path, IDS[:2], TEXTS[:2], VOICES[:2], header="id|text|speaker")
    assert found(read(path)) == list(zip(PATHS[:2], TEXTS[:2], VOICES[:2], [None] * 2, strict=True))
    assert [row.id for row in read(path).rows] == IDS[:2]


def test_a_header_of_other_names_needs_columns(tmp_path):
    path = corpus(tmp_path, PATHS[:3], TEXTS[:3], VOICES[:3], header="clip|words|who")
    rows = found(read(path, "audio=clip,text=words,speaker=who"))
    assert rows == list(zip(PATHS[:3], TEXTS[:3], VOICES[:3], [None] * 3, strict=True))


AMBIGUOUS = {
    "speakers that never come again": (IDS, TEXTS, [f"name{n}" for n in range(12)]),
    "a translation": (IDS, TEXTS, [f"phrase {n} d'une traduction" for n in range(12)]),
    "two columns of names": (PATHS, VOICES, ["happy", "sad"] * 6, TEXTS),
    "texts that come again as names do": (IDS, VOICES, ["yes", "no"] * 6),
    "one line": (IDS[:1], TEXTS[:1], ["sam"]),
    "two recordings per line": (PATHS, TEXTS, PATHS, NORMALISED),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_with_the_way_to_decide(case, tmp_path):
    columns = AMBIGUOUS[case]
    path = corpus(tmp_path, *columns)
    with pytest.raises(InputError) as caught:
        read(path)
    assert_parts(caught.value, "metadata.csv", "columns", "columns whose content shows", "--columns audio=1")
    manifest = read(path, f"audio=1,text={len(columns)},speaker=2")
    assert [(row.text, row.speaker) for row in manifest.rows] == list(zip(columns[-1], columns[1], strict=True))
    assert [row.audio.path for row in manifest.rows] == PATHS[: len(manifest.rows)]


@pytest.mark.parametrize("shape", ["LJSpeech", "piper", "XTTS", "F5", "LJSpeech without the third"])
@pytest.mark.parametrize("sign", ["|", " | "])
def test_a_pipe_inside_a_text_is_refused_by_line(shape, sign, tmp_path):
    columns = [list(column) for column in SHAPES[shape][0]]
    for column in columns:
        if column[4] in (TEXTS[4], NORMALISED[4]):
            column[4] = f"see{sign}you"
    manifest = read(corpus(tmp_path, *columns))
    ((line, error),) = manifest.rejected
    assert line == 5
    assert_parts(error, "metadata.csv line 5", "fields in", "without a | inside a text", "Correct the row")
    assert len(manifest.rows) == 11


def test_a_missing_field_between_blanks_does_not_shift_the_others(tmp_path):
    """Three fields, as all lines have; but one of the two signs belongs to the text."""
    path = corpus(tmp_path, IDS, TEXTS, NORMALISED)
    lines = path.read_text().splitlines()
    lines[4] = "utt4|see you | at 5"
    path.write_text("\n".join(lines))
    assert [line for line, _ in read(path).rejected] == [5]


@given(texts=st.lists(st.text("ab |\"'،م", min_size=1, max_size=12), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_what_the_csv_module_writes_with_pipes_is_read_or_refused(texts, tmp_path_factory):
    """With a header, as pandas writes XTTS lists: quotes round what holds a quote or a `|`."""
    folder = tmp_path_factory.mktemp("quoted")
    with open(folder / "m.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="|", lineterminator="\n")
        writer.writerow(["audio_file", "text", "speaker_name"])
        writer.writerows([f"{n}.wav", f"x{text}", "s"] for n, text in enumerate(texts))
    manifest = read(folder / "m.csv")
    assert [row.text for row in manifest.rows] == [f"x{text}" for text in texts]


@pytest.mark.parametrize("header", ["", '"audio"|"text"|"speaker"'])
def test_a_file_whose_every_field_is_in_quotes_is_read_without_them(header, tmp_path):
    columns = [[f'"{value}"' for value in column] for column in (PATHS, TEXTS, VOICES)]
    path = corpus(tmp_path, *columns, header=header)
    assert found(read(path)) == list(zip(PATHS, TEXTS, VOICES, NOTHING, strict=True))


def test_quotes_of_speech_stay(tmp_path):
    path = corpus(tmp_path, IDS, [f'"{text}"' for text in TEXTS], VOICES)
    assert [row.text for row in read(path).rows] == [f'"{text}"' for text in TEXTS]


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path):
    path = corpus(tmp_path, IDS, VOICES, TEXTS)
    rows = found(read(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert found(read(path)) == rows
    assert [row.line for row in read(path).rows][:2] == [1, 3]


def test_whose_voice_rows_without_a_speaker_are_is_printed(tmp_path, capsys):
    path = corpus(tmp_path, IDS, TEXTS, NORMALISED)
    for speaker, said in (
        (None, "  12 rows name no speaker: they are the voice 'my voice', after their folder (--speaker NAME names"),
        ("salma", "  12 rows name no speaker: they are the voice 'salma', as --speaker says\n"),
    ):
        manifest = read(path, speaker=speaker)
        show_manifest(manifest, build_clips(manifest, path.parent), keep_system=False, speaker=speaker)
        assert said in capsys.readouterr().out
