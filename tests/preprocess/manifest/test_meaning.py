"""What the rows of a manifest mean is read from what they hold: names, times, columns without a header, ChatML."""

import json
import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.column_names import parse_columns
from preprocess.manifest.read import read_manifest
from tests.fixtures.dialects import as_dialects, conversation, cut, kaldi_folder
from tests.preprocess.helpers import assert_parts, write_jsonl

MARKS = "<|audio_bos|><|AUDIO|><|audio_eos|>"
SPECIAL = ["<|eot_id|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
TEXTS = [
    "صباح الخير يا أصدقائي الأعزاء",
    "كيف حالك اليوم؟ أتمنى أن تكون بخير",
    "ذهبت إلى السوق لشراء الخبز",
    "The weather is fine today, is it not?",
    "سنلتقي غدا في الساعة الخامسة",
    "I have never seen such a large river",
]
VOICES = ["salma", "omar", "salma", "huda", "omar", "salma"]


def read(path, columns="", **flags):
    return read_manifest(path, SPECIAL, DEFAULT_SYSTEM_TEXT, parse_columns(columns), **flags)


def refusal(path, row):
    """Why a row of JSONL is refused, beside one that is read."""
    good = {"audio": "good.wav", "text": "yes", "speaker": "s"}
    ((line, error),) = read(write_jsonl(path, [good, row])).rejected
    assert line == 2
    return error


# --- names, numbers and times ---


NOTHINGS = [None, "", "  ", "nan", "NaN", math.nan, "None", "null", "NULL", "N/A", "\\N", "<NA>"]


@pytest.mark.parametrize("nothing", NOTHINGS)
@pytest.mark.parametrize("name", ["speaker", "id", "language", "reference_audio", "reference_text", "start", "end"])
def test_a_cell_without_a_value_means_none(name, nothing, tmp_path):
    row = {"audio": "a.wav", "text": "yes", "speaker": "s", name: nothing}
    path = tmp_path / "m.jsonl"
    (found,) = read(write_jsonl(path, [row])).rows
    without = {key: value for key, value in row.items() if key != name}
    assert [found] == read(write_jsonl(path, [without])).rows


def test_words_for_nothing_are_counted(tmp_path):
    rows = [{"audio": f"{n}.wav", "text": "yes", "speaker": "nan" if n < 3 else "s", "id": None} for n in range(5)]
    manifest = read(write_jsonl(tmp_path / "m.jsonl", rows))
    assert manifest.words_for_nothing == {"speaker": 3}


def test_a_text_that_is_a_word_for_nothing_stays_a_text(tmp_path):
    """It is counted as noise, and dropped by default; the word "None" may be said."""
    (row,) = read(write_jsonl(tmp_path / "m.jsonl", [{"audio": "a.wav", "text": "None", "speaker": "s"}])).rows
    assert row.text == "None"


def test_seven_is_one_speaker_however_it_is_written(tmp_path):
    names = [7, 7.0, "7", "7.0", " 7 ", "7.00"]
    rows = [{"audio": f"{n}.wav", "text": "yes", "speaker": name, "id": name} for n, name in enumerate(names)]
    assert {(row.speaker, row.id) for row in read(write_jsonl(tmp_path / "m.jsonl", rows)).rows} == {("7", "7")}
    table = pa.table({"audio": ["a.wav", "b.wav"], "text": ["x", "y"], "speaker": [7.0, math.nan]})
    pq.write_table(table, tmp_path / "m.parquet")
    assert [row.speaker for row in read(tmp_path / "m.parquet").rows] == ["7", None]
    others = ["7.5", "07", "7.0.1", "-7"]
    rows = [{"audio": f"{n}.wav", "text": "yes", "speaker": name} for n, name in enumerate(others)]
    assert [row.speaker for row in read(write_jsonl(tmp_path / "m.jsonl", rows)).rows] == others


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, math.inf])
def test_a_speaker_that_is_no_name_is_refused(value, tmp_path):
    error = refusal(tmp_path / "m.jsonl", {"audio": "a.wav", "text": "yes", "speaker": value})
    assert_parts(error, "line 2", "speaker = ", "a string or a number", "Correct the row")


TIMES = [
    ({"start": 1.5, "end": 3.0}, (1.5, 3.0)),
    ({"offset": 1.5, "duration": 1.5}, (1.5, 3.0)),
    ({"start": 1.5, "duration": 1.5}, (1.5, 3.0)),
    ({"start_time": "1.5", "end_time": "3"}, (1.5, 3.0)),
    ({"begin": 1.5, "end": 3.0, "duration": 60.0}, (1.5, 3.0)),
    ({"offset": 0, "duration": 3.0}, (0.0, 3.0)),
    ({"offset": 0.0}, (None, None)),
    ({"duration": 3.0}, (None, None)),
    ({"offset": None, "duration": 3.0}, (None, None)),
    ({"end": 3.0}, (None, 3.0)),
]


@pytest.mark.parametrize(("times", "part"), TIMES)
def test_a_part_is_from_its_start_to_its_end(times, part, tmp_path):
    """NeMo and lhotse write a duration. Alone it describes the file."""
    (row,) = read(write_jsonl(tmp_path / "m.jsonl", [{"audio": "a.wav", "text": "x", "speaker": "s", **times}])).rows
    assert row.audio == Recording("a.wav", *part)


@pytest.mark.parametrize(
    "times",
    [
        {"start": 0.2, "end": 0},
        {"start": 0, "end": 0},
        {"end": 0},
        {"start": 2.0, "end": 2.0},
        {"start": 3.0, "end": 2.0},
        {"offset": 2.0, "duration": 0},
        {"offset": 2.0, "duration": -1},
        {"start": True, "end": 2},
    ],
)
def test_a_part_of_no_length_is_refused(times, tmp_path):
    error = refusal(tmp_path / "m.jsonl", {"audio": "a.wav", "text": "x", "speaker": "s", **times})
    assert error.reason == "malformed_row"


@pytest.mark.parametrize("name", ["start_ms", "end_ms", "offset_samples", "start_frame"])
def test_times_in_another_unit_are_refused(name, tmp_path):
    """Not known, they would leave a whole recording under the text of each part."""
    with pytest.raises(InputError) as caught:
        read(write_jsonl(tmp_path / "m.jsonl", [{"audio": "a.wav", "text": "x", "speaker": "s", name: 100}]))
    assert_parts(caught.value, "columns", name, "start and end in seconds", "Write them in seconds")


@pytest.mark.parametrize(("value", "channel"), [(1, 1), ("0", 0), (1.0, 1), (None, None), ("nan", None)])
def test_a_channel_is_a_number_from_0(value, channel, tmp_path):
    row = {"audio": "a.wav", "text": "x", "speaker": "s", "channel": value}
    assert read(write_jsonl(tmp_path / "m.jsonl", [row])).rows[0].audio.channel == channel
    for wrong in (-1, "left", 0.5):
        assert "channel = " in refusal(tmp_path / "m.jsonl", {**row, "channel": wrong}).found


@pytest.mark.parametrize("audio", ["audio_filepath", "audio_path", "file", "filename", "wav", "audio_file"])
@pytest.mark.parametrize("text", ["transcript", "sentence", "normalized_text", "transcription"])
def test_usual_names_are_known(audio, text, tmp_path):
    row = {audio: "a.wav", text: "yes", "speaker_name": "s", "lang": "ar"}
    (found,) = read(write_jsonl(tmp_path / "m.jsonl", [row])).rows
    assert (found.audio.path, found.text, found.speaker, found.language) == ("a.wav", "yes", "s", "ar")


def test_a_speaker_column_that_only_repeats_the_language_is_noticed(tmp_path):
    def is_noticed(*names):
        rows = [{"audio": f"{n}.wav", "text": "x", "speaker": s, "language": la} for n, (s, la) in enumerate(names)]
        return read(write_jsonl(tmp_path / "m.jsonl", rows)).speakers_are_languages

    assert is_noticed(("ar", "ar"), ("en", "en"))
    assert is_noticed(("Klingon", "Klingon"))
    assert is_noticed(("ar-EG", None), ("Arabic", None))
    assert not is_noticed(("ar", "ar"), ("salma", "ar"))
    assert not is_noticed(("salma", None))


def test_speaker_names_the_rows_that_name_none(tmp_path):
    rows = [{"audio": "a.wav", "text": "x"}, {"audio": "b.wav", "text": "x", "speaker": "omar"}]
    rows.append({"audio": "c.wav", "text": "x", "speaker": "nan"})
    manifest = read(write_jsonl(tmp_path / "m.jsonl", rows), speaker="salma")
    assert [row.speaker for row in manifest.rows] == ["salma", "omar", "salma"]
    assert manifest.named_by_flag == 2


# --- | without a header ---


def pipe_folder(
    folder: Path, lines: list[str], name: str = "metadata.csv", suffix: str = ".wav", inside: str = "wavs"
) -> Path:
    (folder / inside).mkdir(parents=True, exist_ok=True)
    for number in range(len(TEXTS)):
        (folder / inside / f"u{number}{suffix}").touch()
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def meant(path) -> list[tuple]:
    manifest = read(path)
    assert not manifest.rejected
    return [(row.audio.path, row.text, row.speaker) for row in manifest.rows]


ALL = range(len(TEXTS))
NAMED = [(f"wavs/u{n}.wav", TEXTS[n], VOICES[n]) for n in ALL]
ONE_VOICE = [(audio, text, "corpus") for audio, text, _ in NAMED]
PIPES = {
    "LJSpeech of two columns": ([f"u{n}|{TEXTS[n]}" for n in ALL], ONE_VOICE),
    "LJSpeech of three": ([f"u{n}|{TEXTS[n]} {n}|{TEXTS[n]}" for n in ALL], ONE_VOICE),
    "LJSpeech, as often without diacritics": ([f"u{n}|{TEXTS[n]}|{TEXTS[n]}" for n in ALL], ONE_VOICE),
    "piper": ([f"u{n}|{VOICES[n]}|{TEXTS[n]}" for n in ALL], NAMED),
    "piper with files": ([f"u{n}.wav|{VOICES[n]}|{TEXTS[n]}" for n in ALL], NAMED),
    "VITS with numbers": (
        [f"wavs/u{n}.wav|{ord(VOICES[n][0])}|{TEXTS[n]}" for n in ALL],
        [(audio, text, str(ord(voice[0]))) for audio, text, voice in NAMED],
    ),
    "F5 without a header": ([f"wavs/u{n}.wav|{TEXTS[n]}" for n in ALL], ONE_VOICE),
    "F5 with a header": (["audio_file|text", *(f"wavs/u{n}.wav|{TEXTS[n]}" for n in ALL)], None),
    "XTTS without a header": ([f"wavs/u{n}.wav|{TEXTS[n]}|{VOICES[n]}" for n in ALL], NAMED),
    "XTTS with a header": (
        ["audio_file|text|speaker_name", *(f"wavs/u{n}.wav|{TEXTS[n]}|{VOICES[n]}" for n in ALL)],
        NAMED,
    ),
    "Coqui": ([f"wavs/u{n}.wav|{TEXTS[n]} {n}|{TEXTS[n]}|{VOICES[n]}" for n in ALL], NAMED),
    "MeloTTS": ([f"wavs/u{n}.wav|{VOICES[n]}|ar|{TEXTS[n]}" for n in ALL], NAMED),
    "two rows of two voices": ([f"wavs/u{n}.wav|{TEXTS[n]}|{VOICES[n]}" for n in (0, 1)], NAMED[:2]),
    "texts in quotes": ([f'wavs/u{n}.wav|"{TEXTS[n]}"|{VOICES[n]}' for n in ALL], NAMED),
}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.txt"])
@pytest.mark.parametrize("case", PIPES)
def test_columns_with_pipes_are_what_they_hold(case, name, tmp_path):
    lines, expected = PIPES[case]
    if expected is None:
        expected = [(audio, text, None) for audio, text, _ in NAMED]
    assert meant(pipe_folder(tmp_path / "corpus", lines, name)) == expected


@pytest.mark.parametrize(("suffix", "inside"), [(".flac", "wavs"), (".mp3", "clips"), (".wav", ".")])
def test_ids_stand_for_the_files_that_are_there(suffix, inside, tmp_path):
    lines = [f"u{n}|{TEXTS[n]}" for n in ALL]
    paths = [audio for audio, *_ in meant(pipe_folder(tmp_path, lines, suffix=suffix, inside=inside))]
    assert paths == [f"{'' if inside == '.' else inside + '/'}u{n}{suffix}" for n in ALL]


def test_a_pipe_inside_a_text_is_refused_by_line(tmp_path):
    lines = [f"u{n}|{VOICES[n]}|{TEXTS[n]}" for n in ALL]
    lines[2] = f"u2|{VOICES[2]}|one|two"
    lines[4] = "u4|omar"
    manifest = read(pipe_folder(tmp_path, lines))
    assert [line for line, _ in manifest.rejected] == [3, 5]
    assert len(manifest.rows) == 4


@pytest.mark.parametrize(
    "lines",
    [
        [f"u{n}|stop {n}|go {n}" for n in ALL],
        [f"u{n}|{TEXTS[n]}|{TEXTS[n - 1]}|{TEXTS[n - 2]}" for n in ALL],
        [f"wavs/u{n}.wav|wavs/u{n - 1}.wav|{TEXTS[n]}" for n in ALL],
    ],
)
def test_columns_that_may_mean_two_things_are_not_guessed_at(lines, tmp_path):
    with pytest.raises(InputError) as caught:
        read(pipe_folder(tmp_path, lines))
    assert "Write a header" in caught.value.action


# --- ChatML ---


SHAPES = {
    "Boson's example": [("user", ["one", "ref.wav", "Speak like this."]), ("assistant", ["two", "target.wav"])],
    "without an instruction": [("user", ["one", "ref.wav"]), ("assistant", ["two", "target.wav"])],
    "audio before its text": [("user", ["one", "ref.wav"]), ("assistant", ["target.wav", "two"])],
    "turn by turn": [("user", ["one"]), ("assistant", ["ref.wav"]), ("user", ["two"]), ("assistant", ["target.wav"])],
    "published": [
        ("user", [f"one {MARKS}"]),
        ("assistant", ["ref.wav"]),
        ("user", [f"two{MARKS}"]),
        ("assistant", ["target.wav"]),
    ],
    "published reference, plain target": [
        ("user", [f"one {MARKS} "]),
        ("assistant", ["ref.wav"]),
        ("user", ["two"]),
        ("assistant", ["target.wav"]),
    ],
}


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_chatml_is_read_by_what_it_has(shape, system, tmp_path):
    turns = [("system", ["Generate audio."])] * system + SHAPES[shape]
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [conversation(*turns)]))
    (row,) = manifest.rows
    assert (row.audio, row.text) == (Recording("target.wav"), "two")
    assert row.references == ((Recording("ref.wav"), "one"),)
    assert manifest.num_marks == json.dumps(turns).count(MARKS)


LACKING = {
    "no text before the reference": [("user", ["ref.wav", "one"]), ("assistant", ["two", "target.wav"])],
    "no text of the assistant's audio": [("user", ["one", "ref.wav"]), ("assistant", ["target.wav"])],
    "no audio in a turn of the assistant": [("user", ["one", "ref.wav"]), ("assistant", ["two"])],
    "no audio of the assistant at the end": [("user", ["one"]), ("assistant", ["ref.wav"]), ("user", ["two"])],
    "no audio of the assistant after a text": [("user", ["one"]), ("user", ["two"]), ("assistant", ["target.wav"])],
    "no single audio in a turn of the assistant": [("user", ["one"]), ("assistant", ["a.wav", "b.wav"])],
    "no single text in a turn of the assistant": [("user", ["x"]), ("assistant", ["one", "two", "a.wav"])],
    "no single text before the reference": [("user", ["one", "two", "ref.wav"]), ("assistant", ["three", "a.wav"])],
    "no role user or assistant": [("user", ["one"]), ("tool", ["a.wav"])],
}


@pytest.mark.parametrize("lack", LACKING)
def test_a_refusal_of_chatml_says_what_is_lacking(lack, tmp_path):
    error = refusal(tmp_path / "m.jsonl", conversation(*LACKING[lack]))
    assert error.reason == "not_voice_cloning"
    assert error.found.startswith(lack)


@pytest.mark.parametrize(
    "turns",
    [
        [("user", [f"one {MARKS} more"]), ("assistant", ["target.wav"])],
        [("user", [MARKS + "one"]), ("assistant", ["target.wav"])],
        [("user", ["one"]), ("assistant", [f"two {MARKS}", "target.wav"])],
        [("user", [f"one {MARKS}", "ref.wav"]), ("assistant", ["two", "target.wav"])],
    ],
)
def test_marks_elsewhere_are_special_tokens(turns, tmp_path):
    assert refusal(tmp_path / "m.jsonl", conversation(*turns)).reason == "special_token"


def test_marks_that_come_off_leave_a_row_without_words_refused(tmp_path):
    error = refusal(tmp_path / "m.jsonl", conversation(("user", [MARKS]), ("assistant", ["target.wav"])))
    assert_parts(error, "line 2", "no single text in a turn of the user: 0", "each with its text", "Add what is")


@pytest.mark.parametrize("num_audios", [1, 3])
def test_ms_swift_rows_with_other_numbers_of_audios_and_marks_are_refused(num_audios, tmp_path):
    messages = [
        {"role": "user", "content": "one<audio>"},
        {"role": "assistant", "content": "two<audio>"},
    ]
    row = {"messages": messages, "audios": [f"{n}.wav" for n in range(num_audios)]}
    error = refusal(tmp_path / "m.jsonl", row)
    assert error.found in ("audio without a path", "3 audios and 2 <audio> marks")


def test_a_chatml_part_from_the_start_of_a_long_file_is_a_part(tmp_path):
    row = conversation(("user", ["x"]), ("assistant", ["a.wav"]))
    row["messages"][1]["content"][0] |= {"offset": 0, "duration": 2.5}
    assert read(write_jsonl(tmp_path / "m.jsonl", [row])).rows[0].audio == Recording("a.wav", 0.0, 2.5)


# --- Kaldi and lhotse ---


def test_a_kaldi_folder_is_read_with_its_segments(tmp_path):
    kaldi_folder(
        tmp_path,
        wav_scp="talk talks/one.flac\ncall call.wav\nunused u.wav\n",
        text="u1 صباح الخير\nu2 مساء النور\n\nu3 hello\nu4 bye\nu5 lost\n",
        segments="u1 talk 0.5 2.25\nu2 talk 2.25 -1\nu3 call 1 2 B\nu4 call 0 1 0\nu6 talk 5 6\n",
        utt2spk="u1 salma\nu2 salma\nu3 omar\n",
    )
    manifest = read(tmp_path)
    assert [(row.line, row.id, row.text, row.speaker, row.audio) for row in manifest.rows] == [
        (1, "u1", "صباح الخير", "salma", Recording("talks/one.flac", 0.5, 2.25)),
        (2, "u2", "مساء النور", "salma", Recording("talks/one.flac", 2.25, None)),
        (4, "u3", "hello", "omar", Recording("call.wav", 1.0, 2.0, channel=1)),
        (5, "u4", "bye", None, Recording("call.wav", 0.0, 1.0, channel=0)),
    ]
    (line_5, lost), (line_6, silent) = manifest.rejected
    assert (line_5, line_6) == (6, 7)
    assert_parts(lost, "text line 6", "the utterance u5, which is not in segments", "per utterance", "Correct")
    assert_parts(
        silent, "text line 7", "u6 of segments, which is not in text", "a transcript", "Write its transcript"
    )
    assert manifest.dialects == {"Kaldi": 4}


def test_a_kaldi_folder_without_segments(tmp_path):
    kaldi_folder(
        tmp_path,
        wav_scp="u1 a.wav\nu2 sph2pipe -f wav b.sph |\nu3 c.ark:123\nu4 d.wav\nu5 e.wav\nu5 f.wav\nu6 a b.wav\n",
        text="u1 one\nu2 two\nu3 three\nu5 five\nu6 six\nu6 six\nu7 seven\nu1\n",
        utt2spk="u1 s\nu2 s\nu3 s\nu5 s\nu6 s\n",
    )
    manifest = read(tmp_path)
    assert [(row.id, row.audio.path) for row in manifest.rows] == [("u1", "a.wav"), ("u6", "a b.wav")]
    found = {line: error.found for line, error in manifest.rejected}
    assert found[2] == "a shell command in wav.scp line 2: sph2pipe -f wav b.sph |"
    assert found[3] == "a place in an archive in wav.scp line 3: c.ark:123"
    assert found[4] == "u5 for the second time in wav.scp line 6"
    assert found[6] == "the utterance u6 for the second time"
    assert "u7, which is not in wav.scp" in found[7]
    assert found[8] == "the utterance u1 for the second time"
    assert found[9] == "the utterance u4 of wav.scp, which is not in text"


def test_lhotse_cuts_are_read(tmp_path):
    whole = cut("b", start=0, duration=10.0)
    whole["supervisions"][0]["duration"] = 10.0
    stereo = cut("c", channel=1)
    stereo["recording"]["sources"][0]["channels"] = [0, 1]
    stereo["supervisions"][0] |= {"start": 0.5, "duration": 1.0, "channel": 1}
    manifest = read(write_jsonl(tmp_path / "cuts.jsonl", [cut("a"), whole, stereo]))
    assert [(row.audio, row.text, row.speaker, row.language, row.id) for row in manifest.rows] == [
        (Recording("a.wav", 1.5, 3.5), "صباح الخير", "salma", "ar", "s-a"),
        (Recording("b.wav"), "صباح الخير", "salma", "ar", "s-b"),
        (Recording("c.wav", 2.0, 3.0, channel=1), "صباح الخير", "salma", "ar", "s-c"),
    ]
    assert manifest.dialects == {"lhotse": 3}
    (row,) = read(write_jsonl(tmp_path / "one.jsonl", [cut("a")])).rows
    assert row.audio == Recording("a.wav", 1.5, 3.5), "a file of a single cut is no object around rows"


CUTS = {
    "2 supervisions": lambda c: c["supervisions"].append(c["supervisions"][0]),
    "0 supervisions": lambda c: c["supervisions"].clear(),
    "of type MixedCut": lambda c: c.update(type="MixedCut"),
    "of type PaddingCut": lambda c: c.update(type="PaddingCut"),
    "a supervision from 1.5 to 3.500 s": lambda c: c["supervisions"][0].update(start=1.5),
    "a supervision from -1": lambda c: c["supervisions"][0].update(start=-1),
    "a source of type command": lambda c: c["recording"]["sources"][0].update(type="command", source="sox x |"),
    "a source of type url": lambda c: c["recording"]["sources"][0].update(type="url", source="http://x"),
    "that lhotse changes": lambda c: c["recording"].update(transforms=[{"name": "Speed"}]),
    "without a recording": lambda c: c.pop("recording"),
    "0 files for channel 3": lambda c: (c.update(channel=3), c["supervisions"][0].update(channel=3)),
    "no start and duration": lambda c: c.pop("duration"),
}


@pytest.mark.parametrize("found", CUTS)
def test_a_cut_that_is_no_utterance_of_one_file_is_refused(found, tmp_path):
    changed = cut("a")
    CUTS[found](changed)
    error = refusal(tmp_path / "m.jsonl", changed)
    assert found in error.found


# --- all dialects ---

WORDS = ["صباح", "الخير،", "يا;", "hello", "there,", "friend's", "café", "«نعم»", "12"]


@pytest.mark.parametrize("seed", range(5))
def test_the_dialects_agree(seed, tmp_path):
    """The same rows, written in every dialect, are the same clips."""
    random_ = random.Random(seed)
    rows = []
    for number in range(random_.randint(2, 12)):
        words = random_.sample(WORDS, random_.randint(1, 6))
        start = random_.randint(0, 800) / 100
        rows.append(
            {
                "audio": f"{random_.choice(['a b', 'x', 'عربي'])}/{number}.wav",
                "text": " ".join(words),
                "speaker": random_.choice(["salma", "7", "عمر", "Omar B"]),
                "start": start,
                "end": start + random_.randint(50, 200) / 100,
            }
        )
    for dialect, path in as_dialects(tmp_path, rows).items():
        manifest = read(path)
        assert not manifest.rejected, dialect
        for row, given in zip(manifest.rows, rows, strict=True):
            times = row.audio.start_sec or 0.0, row.audio.end_sec
            found = {"audio": row.audio.path, "text": row.text, "speaker": row.speaker}
            assert found == {name: given[name] for name in found}, dialect
            assert times == pytest.approx((given["start"], given["end"])), dialect
