"""Rows become clips: one recording is encoded once, and two rows that contradict each other are told apart."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from preprocess.audio.recording import Recording
from preprocess.corpus.index_rules import KEY_PATTERN
from preprocess.manifest.columns import Row
from preprocess.manifest.read import Manifest
from preprocess.plan.clips import ClipTable, build_clips, clip_key
from tests.preprocess.helpers import assert_parts

ROOT = Path("/data/audio")


def row(line, audio, *values, references=()):
    named = tuple((Recording(name), text) for name, text in references)
    return Row(line, Recording(audio), *values, references=named)


def build(*rows: Row) -> ClipTable:
    return build_clips(Manifest(Path("/data/m.jsonl"), list(rows)), ROOT)


def clip(table, source):
    return table.clips[clip_key(source)]


def problem(table, line):
    (error,) = [error for number, error in table.rejected if number == line]
    return error


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_every_name_makes_a_key_that_a_tar_member_may_bear(name):
    assert KEY_PATTERN.fullmatch(clip_key(name))


def test_keys_tell_apart_what_looks_alike():
    assert len({clip_key(name) for name in ("a/x.wav", "b/x.wav", "a/x.flac", "a/صوت.wav", "a/نص.wav")}) == 5


def test_a_key_does_not_depend_on_where_the_root_lies_or_how_the_path_is_written():
    rows = [
        row(1, "s/a.wav", "x", "s"),
        row(2, "./s/../s/b.wav", "x", "s"),
        row(3, "/data/audio/c.wav", "x", "s"),
    ]
    assert [c.source for c in build(*rows).clips.values()] == ["s/a.wav", "s/b.wav", "c.wav"]
    assert clip(build(row(1, "/elsewhere/a.wav", "x", "s")), "/elsewhere/a.wav").path == "/elsewhere/a.wav"


def test_a_drawn_row_makes_a_clip():
    table = build(row(1, "a.wav", " نعم ", "salma", "ar", "id1"))
    found = clip(table, "a.wav")
    assert (found.text, found.speaker, found.language, found.id) == (" نعم ", "salma", "ar", "id1")
    assert found.draws_reference
    assert found.dialogues == []
    assert found.path == "/data/audio/a.wav"


def test_identical_rows_are_merged_into_the_clip():
    table = build(
        row(1, "a.wav", "x", "s"),
        row(2, "./a.wav", "x ", "s"),
        row(3, "b.wav", "x", "s"),
    )
    assert len(table.clips) == 2
    assert [use.line for use in table.uses] == [1, 3]
    assert problem(table, 2).status == "merged"
    assert_parts(problem(table, 2), "line 2", "as m.jsonl line 1", "once", f"into clip {clip_key('a.wav')}")


def test_another_transcript_of_the_same_recording_is_screened_naming_the_first_row():
    table = build(row(1, "a.wav", "yes", "s"), row(2, "a.wav", "no", "s"))
    assert clip(table, "a.wav").text == "yes"
    assert (problem(table, 2).status, problem(table, 2).reason) == ("screened", "other_transcript")
    assert_parts(
        problem(table, 2), "line 2", "a.wav with other words than in m.jsonl line 1", "one transcript", "Listen"
    )


def test_another_speaker_of_the_same_recording_is_screened():
    table = build(row(1, "a.wav", "yes", "omar"), row(2, "a.wav", "yes", "huda"))
    assert clip(table, "a.wav").speaker == "omar"
    assert problem(table, 2).reason == "other_speaker"


def test_a_row_with_neither_speaker_nor_reference_fails():
    table = build(row(1, "a.wav", "x", "s"), row(2, "b.wav", "x"))
    assert (problem(table, 2).status, problem(table, 2).reason) == ("failed", "no_speaker")
    assert_parts(problem(table, 2), "m.jsonl line 2", "neither speaker nor reference_audio", "one of them", "Fill in")
    assert len(table.clips) == 1


def test_a_row_that_names_its_reference_becomes_a_dialogue_and_two_clips():
    table = build(row(1, "t.wav", " target ", "s", references=(("r.wav", "refer"),)))
    target, reference = clip(table, "t.wav"), clip(table, "r.wav")
    assert target.dialogues == [{"text": "target", "references": [{"key": reference.key, "text": "refer"}]}]
    assert (target.draws_reference, reference.draws_reference) == (False, False)
    assert (reference.text, reference.speaker, reference.dialogues) == ("refer", "s", [])


def test_one_reference_may_be_used_with_two_texts_and_one_target_with_two_references():
    table = build(
        row(1, "t.wav", "one", "s", references=(("r.wav", "first"),)),
        row(2, "t.wav", "one", "s", references=(("r.wav", "second"),)),
        row(3, "t.wav", "two", "s", references=(("r.wav", "first"),)),
        row(4, "t.wav", "one ", "s", references=(("r.wav", "first"),)),
    )
    dialogues = clip(table, "t.wav").dialogues
    assert [(d["text"], d["references"][0]["text"]) for d in dialogues] == [
        ("one", "first"),
        ("one", "second"),
        ("two", "first"),
    ]
    assert [use.position for use in table.uses] == [0, 1, 2]
    assert problem(table, 4).status == "merged"
    assert clip(table, "r.wav").text == "first"


def test_what_a_clip_s_own_row_says_counts_more_than_what_a_dialogue_says():
    table = build(
        row(1, "t.wav", "x", references=(("r.wav", "wrong words"),)),
        row(2, "r.wav", "its own words", "omar", "ar"),
    )
    reference = clip(table, "r.wav")
    assert (reference.text, reference.speaker, reference.language) == ("its own words", "omar", "ar")
    assert clip(table, "t.wav").dialogues[0]["references"][0]["text"] == "wrong words"
    assert clip(table, "t.wav").speaker == "omar"


def test_a_reference_without_transcript_takes_that_of_its_own_row_or_fails():
    table = build(
        row(1, "t.wav", "x", references=(("r.wav", None),)),
        row(2, "r.wav", "words", "s"),
        row(3, "u.wav", "x", references=(("unknown.wav", None),)),
    )
    assert clip(table, "t.wav").dialogues[0]["references"][0]["text"] == "words"
    assert problem(table, 3).reason == "no_reference_text"
    assert {c.source for c in table.clips.values()} == {"t.wav", "r.wav"}


def test_rows_without_speaker_share_the_voice_of_their_reference():
    table = build(
        row(1, "a.wav", "x", references=(("r.wav", "y"),)),
        row(2, "b.wav", "x", references=(("r.wav", "y"),)),
        row(3, "c.wav", "x", references=(("q.wav", "y"),)),
    )
    voices = [clip(table, name).speaker for name in ("a.wav", "b.wav", "r.wav", "c.wav", "q.wav")]
    assert voices[0] == voices[1] == voices[2] == f"unnamed-{clip_key('r.wav')}"
    assert voices[3] == voices[4] != voices[0]
    assert table.rows_without_speaker == 3


def test_a_target_that_is_its_own_reference_fails():
    table = build(
        row(1, "ok.wav", "x", "s"),
        row(2, "t.wav", "x", "s", references=(("./t.wav", "x"),)),
    )
    assert problem(table, 2).reason == "reference_is_target"
    assert clip_key("t.wav") not in table.clips


@given(st.permutations(range(6)))
def test_every_row_is_used_or_rejected_once_in_any_order(order):
    rows = [
        row(1, "a.wav", "x", "s"),
        row(2, "a.wav", "x", "s"),
        row(3, "a.wav", "y", "s"),
        row(4, "b.wav", "x"),
        row(5, "c.wav", "x", references=(("a.wav", "x"),)),
        row(6, "c.wav", "x", references=(("d.wav", None),)),
    ]
    table = build(*(rows[i] for i in order))
    assert sorted([use.line for use in table.uses] + [line for line, _ in table.rejected]) == [1, 2, 3, 4, 5, 6]
    json.dumps([c.dialogues for c in table.clips.values()])
