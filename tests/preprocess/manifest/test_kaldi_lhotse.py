"""Kaldi's folders and lhotse's cuts: each utterance by its times, and what is no plain file is refused by name."""

import gzip
import json

import pytest

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.read import read_manifest
from tests.preprocess.helpers import assert_parts, write_jsonl


def read(path, **how):
    return read_manifest(path, ["<|eot_id|>"], DEFAULT_SYSTEM_TEXT, **how)


def kaldi(tmp_path, **files):
    files = {"text": "u1 one two\nu2\tthree\n", "utt2spk": "u1 sam\nu2 ann\n", **files}
    for name, text in ({"wav_scp": "u1 a.wav\nu2 /data/b.flac\n"} | files).items():
        if text is not None:
            (tmp_path / name.replace("wav_scp", "wav.scp")).write_text(text, encoding="utf-8")
    return tmp_path


def errors(manifest):
    return {manifest.where(line): error for line, error in manifest.rejected}


def test_a_kaldi_folder_of_whole_recordings(tmp_path):
    kaldi(tmp_path, spk2gender="sam m\n", utt2lang="u1 en\n")
    for path in (tmp_path, tmp_path / "wav.scp", tmp_path / "text"):
        manifest = read(path)
        assert [(r.audio, r.text, r.speaker, r.id, r.language) for r in manifest.rows] == [
            (Recording("a.wav"), "one two", "sam", "u1", "en"),
            (Recording("/data/b.flac"), "three", "ann", "u2", None),
        ]
        assert manifest.dialects == {"Kaldi": 2}
        assert not manifest.rejected


def test_segments_of_a_kaldi_folder_have_their_times(tmp_path):
    segments = "u1 rec 0.5 1.75\nu2 rec 1.75 -1\n"
    manifest = read(kaldi(tmp_path, wav_scp="rec talk.wav\n", segments=segments))
    assert [row.audio for row in manifest.rows] == [Recording("talk.wav", 0.5, 1.75), Recording("talk.wav", 1.75)]
    assert not manifest.rejected


def test_what_a_kaldi_folder_does_not_say_is_named_by_file_and_line(tmp_path):
    manifest = read(
        kaldi(
            tmp_path,
            text="u1 one\n\nu3 three\nu4 four\nu1 again\nu5\nu6 six\n",
            wav_scp="u1 a.wav\nu2 b.wav\nu4 d.wav\nu5 e.wav\nu6 f.wav\nu6 g.wav\n",
            utt2spk="u1 s\nu2 s\nu3 s\nu5 s\nu6 s\n",
        )
    )
    assert [row.id for row in manifest.rows] == ["u1"]
    found = errors(manifest)
    assert_parts(found["text line 3"], "text line 3", "u3, which is not in wav.scp", "one line of u3", "wav.scp")
    assert_parts(found["text line 4"], "text line 4", "u4, which is not in utt2spk", "one line of u4", "utt2spk")
    assert_parts(found["text line 5"], "text line 5", "u1 again, as in line 1", "each utterance once", "Correct")
    assert found["text line 6"].status == "screened", "no words"
    assert_parts(found["text line 7"], "text line 7", "u6 with 2 values in wav.scp", "one line", "Correct wav.scp")
    assert_parts(found["wav.scp line 2"], "wav.scp line 2", "u2, which has no line in text", "its words", "Add u2")
    assert len(found) == len(manifest.rejected) == 6


@pytest.mark.parametrize(
    ("value", "reason", "parts"),
    [
        ("sph2pipe -f wav -p x.sph |", "shell_command", ("a shell command for u1", "the path", "Run the commands")),
        ("x.sph|", "shell_command", ("a shell command for u1", "the path", "Run the commands")),
        ("/data/raw.ark:1234", "kaldi_archive", ("a part of an archive", "the path", "Extract")),
        ("https://host/a.wav", "audio_elsewhere", ("an address", "a path on this machine", "Copy")),
        ("", "not_in_wav_scp", ("u1, which is not in wav.scp", "one line of u1", "Correct wav.scp")),
    ],
)
def test_a_recording_that_is_no_file_is_refused_by_name(value, reason, parts, tmp_path):
    manifest = read(kaldi(tmp_path, wav_scp=f"u1 {value}\nu2 b.wav\n"))
    ((line, error),) = manifest.rejected
    assert (line, error.reason) == (1, reason)
    assert_parts(error, "text line 1", *parts)
    assert [row.id for row in manifest.rows] == ["u2"]


@pytest.mark.parametrize("times", ["0.5", "1.0 0.5", "1 1", "-1 2", "a b", "1 0", "nan 2"])
def test_times_of_a_segment_that_make_no_sense_are_refused(times, tmp_path):
    manifest = read(kaldi(tmp_path, wav_scp="r a.wav\n", segments=f"u1 r {times}\nu2 r 0 1\n"))
    ((line, error),) = manifest.rejected
    assert_parts(error, "text line 1", f"u1 r {times} in segments", "its start and end in seconds", "Correct")


def test_a_kaldi_folder_without_speakers_has_one_by_flag_only(tmp_path):
    manifest = read(kaldi(tmp_path, utt2spk=None), speaker="salma")
    assert [row.speaker for row in manifest.rows] == ["salma"] * 2
    assert [row.speaker for row in read(tmp_path).rows] == [None] * 2


def test_a_kaldi_folder_without_text_or_with_another_manifest_is_refused(tmp_path):
    kaldi(tmp_path, text=None)
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert_parts(caught.value, str(tmp_path), "wav.scp without text", "a Kaldi folder", "Add text")
    kaldi(tmp_path)
    (tmp_path / "metadata.csv").write_text("audio,text\n")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert_parts(caught.value, str(tmp_path), "2 manifests: metadata.csv, text", "one", "--manifest")


RECORDING = {
    "id": "rec",
    "sources": [{"type": "file", "channels": [0], "source": "talk.wav"}],
    "sampling_rate": 16000,
    "num_samples": 320000,
    "duration": 20.0,
    "channel_ids": [0],
}


def supervision(start=0.0, duration=5.0, **more):
    said = {"id": "sup", "recording_id": "rec", "channel": 0, "text": "one", "language": "ar", "speaker": "salma"}
    return {**said, "start": start, "duration": duration, **more}


def cut(*supervisions, recording=RECORDING, **more):
    whole = {"id": "cut", "start": 2.0, "duration": 5.0, "channel": 0, "type": "MonoCut"}
    return {**whole, "supervisions": list(supervisions), "recording": recording, **more}


def read_cuts(tmp_path, *cuts):
    return read(write_jsonl(tmp_path / "cuts.jsonl", [cut(supervision()), *cuts]))


def test_the_supervisions_of_a_cut_are_clips_by_their_times_in_the_recording(tmp_path):
    two = cut(supervision(0.5, 1.25), supervision(2.0, 3.0, text="two", speaker="omar", id="other"), id="both")
    rows = [cut(supervision()), two, cut(supervision(duration=20.0), start=0, duration=20.0)]
    expected = [
        (Recording("talk.wav", 2.0, 7.0), "one", "salma", "ar", "sup"),
        (Recording("talk.wav", 2.5, 3.75), "one", "salma", "ar", "sup"),
        (Recording("talk.wav", 4.0, 7.0), "two", "omar", "ar", "other"),
        (Recording("talk.wav"), "one", "salma", "ar", "sup"),
    ]
    path = write_jsonl(tmp_path / "cuts.jsonl", rows)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for manifest in (read(path), read(packed)):
        assert [(r.audio, r.text, r.speaker, r.language, r.id) for r in manifest.rows] == expected
        assert manifest.dialects == {"lhotse cuts": 4}
        assert [manifest.where(row.line).split(" ", 1)[1] for row in manifest.rows][-1] == "supervision 4"


@pytest.mark.parametrize(
    ("channels", "wanted", "channel"),
    [([0], 0, None), ([0, 1], 1, 1), ([1, 0], 1, 0), ([0, 1], [0, 1], None), ([0, 1], [1], 1), ([2], 2, None)],
)
def test_a_supervisions_channel_is_picked(channels, wanted, channel, tmp_path):
    recording = {**RECORDING, "sources": [{**RECORDING["sources"][0], "channels": channels}]}
    manifest = read_cuts(tmp_path, cut(supervision(channel=wanted), recording=recording))
    assert manifest.rows[1].audio == Recording("talk.wav", 2.0, 7.0, channel=channel)


def test_the_source_that_has_the_channel_is_the_file(tmp_path):
    sources = [{"type": "file", "channels": [n], "source": f"{n}.wav"} for n in range(2)]
    manifest = read_cuts(tmp_path, cut(supervision(channel=1), recording={**RECORDING, "sources": sources}))
    assert manifest.rows[1].audio.path == "1.wav"


def source(kind, text):
    return {**RECORDING, "sources": [{"type": kind, "channels": [0], "source": text}]}


@pytest.mark.parametrize(
    ("bad", "reason", "found"),
    [
        ({"id": "mix", "type": "MixedCut", "tracks": []}, "mixed_cut", "the cut mix, a MixedCut"),
        ({"id": "pad", "type": "PaddingCut", "duration": 1.0}, "mixed_cut", "the cut pad, a PaddingCut"),
        (cut(), "malformed_row", "the cut cut without supervisions"),
        (cut(supervision(text=None)), "missing_value", "nothing in the column text"),
        (cut(supervision(text="")), "empty", ""),
        (cut(supervision(3.0, 2.5)), "malformed_row", "from 3.0 s to 5.5 s of its 5.0 s"),
        (cut(supervision(-0.5, 2.0)), "malformed_row", "from -0.5 s to 1.5 s"),
        (cut(supervision(1.0, 0.0)), "malformed_row", "start 3.0 s, end 3.0 s"),
        (cut(supervision(1.0, float("nan"))), "malformed_row", "times that are no numbers"),
        (cut(supervision(duration=10**400)), "malformed_row", "which can't be read (OverflowError"),
        (cut(supervision(), recording=source("command", "sox x -t wav -")), "audio_elsewhere", "a command: sox x"),
        (cut(supervision(), recording=source("url", "https://h/a.wav")), "audio_elsewhere", "a url: https"),
        (cut(supervision(), recording=None), "malformed_row", "without a recording"),
        (cut(supervision(), recording={}), "malformed_row", "which can't be read (KeyError"),
        (cut("said"), "malformed_row", "which can't be read (AttributeError"),
        (
            cut(supervision(), recording={**RECORDING, "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}),
            "transformed_audio",
            "changed by Speed",
        ),
        ({"audio": "a.wav"}, "missing_column", "no text among the columns audio"),
        (json.dumps([1]), "malformed_row", "list"),
    ],
)
def test_a_cut_that_is_no_speech_of_a_file_is_refused_by_name(bad, reason, found, tmp_path):
    manifest = read_cuts(tmp_path, bad)
    ((line, error),) = manifest.rejected
    assert line == 2
    assert error.where == "cuts.jsonl supervision 2"
    assert reason in error.reason
    assert found in error.found
    assert len(manifest.rows) == 1


def test_times_a_little_beyond_the_cut_are_rounding(tmp_path):
    manifest = read_cuts(tmp_path, cut(supervision(-0.01, 5.02)))
    assert manifest.rows[1].audio == Recording("talk.wav", 2.0, 7.0)
