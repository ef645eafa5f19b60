"""--layout as-written: which conversations can be kept, what is trained of them, and why others can't be."""

import pytest

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.read import read_manifest
from preprocess.options import parse_settings
from preprocess.plan.clips import build_clips
from tests.preprocess.helpers import assert_parts, flags, write_jsonl


def text(words):
    return {"type": "text", "text": words}


def audio(name):
    return {"type": "audio", "audio_url": f"{name}.wav"}


def turn(role, *parts):
    return {"role": role, "content": list(parts)}


ASKED = turn("user", text("say it"))
SYSTEM = turn("system", text("Be a voice."))
GOOD = {"messages": [ASKED, turn("assistant", audio("good"))]}


def read(tmp_path, *rows, **how):
    special = ["<|AUDIO_OUT|>", "<|eot_id|>"]
    return read_manifest(
        write_jsonl(tmp_path / "m.jsonl", rows), special, DEFAULT_SYSTEM_TEXT, as_written=True, **how
    )


def stored(tmp_path, row, **how):
    """The dialogue that a row becomes, its audios by the names that they have in the row."""
    manifest = read(tmp_path, row, **how)
    assert not manifest.rejected, manifest.rejected
    table = build_clips(manifest, tmp_path)
    (clip,) = (clip for clip in table.clips.values() if clip.dialogues)
    (dialogue,) = clip.dialogues
    for part in (part for message in dialogue["messages"] for part in message["content"]):
        if part["type"] == "audio":
            part["audio_url"] = table.clips[part["audio_url"]].source
    return dialogue


def test_a_conversation_is_kept_but_for_its_system_text(tmp_path):
    turns = [
        ASKED,
        turn("assistant", text("so"), audio("a")),
        turn("user", audio("b")),
        turn("assistant", audio("c")),
    ]
    default = turn("system", text(DEFAULT_SYSTEM_TEXT))
    assert stored(tmp_path, {"messages": turns}) == {"messages": [default, *turns], "start_index": 4}
    row = {"messages": [SYSTEM, *turns]}
    assert stored(tmp_path, row) == {"messages": [default, *turns], "start_index": 4}
    assert stored(tmp_path, row, keep_system=True) == {"messages": [SYSTEM, *turns], "start_index": 4}
    started = {"messages": [SYSTEM, *turns], "start_index": 2}
    assert stored(tmp_path, started, keep_system=True)["start_index"] == 2
    assert stored(tmp_path, {"messages": turns, "start_index": 1})["start_index"] == 2, "one turn is put before"


def test_texts_are_normalised_and_the_system_text_is_not(tmp_path):
    system = turn("system", text("Two  lines,\n\nas  they are."))
    row = {"messages": [system, turn("user", text("  so \u0640 said ")), turn("assistant", audio("a"))]}
    messages = stored(tmp_path, row, keep_system=True)["messages"]
    assert [message["content"][0].get("text") for message in messages[:2]] == [
        "Two  lines,\n\nas  they are.",
        "so said",
    ]


SAID = turn("assistant", text("so"), audio("t"))


@pytest.mark.parametrize(
    ("turns", "transcripts"),
    [
        # The voice-cloning shapes say whose words are whose; else only what the assistant writes before it speaks.
        ([turn("user", text("ref"), audio("r"), text("do")), SAID], ["so", "ref"]),
        (
            [turn("user", text("ref")), turn("assistant", audio("r")), ASKED, turn("assistant", audio("t"))],
            ["say it", "ref"],
        ),
        ([turn("user", text("what is it?"), audio("r")), turn("assistant", audio("t"))], ["", None]),
        ([turn("user", audio("r")), turn("assistant", text("so"), audio("t"), text("there"))], ["so", None]),
    ],
)
def test_what_is_said_in_an_audio_is_known_where_the_row_says_it(turns, transcripts, tmp_path):
    (row,) = read(tmp_path, {"messages": turns}).rows
    assert [said for _, said in row.recordings] == transcripts
    assert row.audio == Recording("t.wav")


@pytest.mark.parametrize(
    ("row", "reason", "parts"),
    [
        ({"messages": []}, "no_target", ("no turns", "audio in a turn of the assistant", "Correct start_index")),
        (
            {"messages": [turn("user", audio("a"))]},
            "no_target",
            ("user: audio, trained from turn 0 on", "the last one, or those from start_index on", "remove the row"),
        ),
        (
            {"messages": [ASKED, turn("assistant", audio("a")), ASKED, turn("assistant", text("bye"))]},
            "no_target",
            ("assistant: text, trained from turn 3 on", "audio in a turn of the assistant", "Correct start_index"),
        ),
        (
            {"messages": [ASKED, turn("assistant", audio("a"))], "start_index": 2},
            "malformed_row",
            ("start_index 2", "the number of a turn, 0 to 1", "Correct the row"),
        ),
        (
            {"messages": [ASKED, turn("assistant", audio("a"))], "start_index": "1"},
            "malformed_row",
            ("start_index '1'", "the number of a turn", "Correct the row"),
        ),
        (
            {"messages": [turn("tool", text("42")), turn("assistant", audio("a"))]},
            "unknown_role",
            ("a turn of the role tool", "system, user, assistant", "Remove the row"),
        ),
        (
            {"messages": [turn("system", audio("v")), ASKED, turn("assistant", audio("a"))]},
            "system_turn",
            ("a system turn with audio", "since --system-text replaces it", "--keep-system"),
        ),
        (
            {"messages": [ASKED, {**turn("assistant", audio("a")), "recipient": "listener"}]},
            "recipient",
            ("a turn with a recipient", "has no recipient", "Remove the row"),
        ),
        (
            {"messages": [turn("user", text("say"), text("<|eot_id|>")), turn("assistant", audio("a"))]},
            "special_token",
            ("<|eot_id|> in the text", "only words", "Remove it"),
        ),
    ],
)
def test_a_conversation_that_can_t_be_kept_is_refused_by_line(row, reason, parts, tmp_path):
    manifest = read(tmp_path, GOOD, row)
    ((line, error),) = manifest.rejected
    assert (line, error.status, error.reason) == (2, "failed", reason)
    assert_parts(error.record(), "m.jsonl line 2", *parts)


@pytest.mark.parametrize("first", ["user", "assistant"])
def test_a_trained_audio_that_stands_in_its_own_prompt_is_refused(first, tmp_path):
    """The last one, which the sample counts for, and one before it."""
    turns = [turn(first, audio("a")), ASKED, turn("assistant", audio("a"))]
    longer = {"messages": [*turns, ASKED, turn("assistant", audio("b"))], "start_index": 2}
    table = build_clips(read(tmp_path, GOOD, {"messages": turns}, longer), tmp_path)
    assert [(line, error.reason) for line, error in table.rejected] == [(n, "reference_is_target") for n in (2, 3)]
    for _, error in table.rejected:
        assert_parts(error.record(), "line", "a.wav as reference and as target", "another recording", "Name another")
    alone = build_clips(read(tmp_path, {**longer, "start_index": 4}), tmp_path)
    assert not alone.rejected, "what is not trained may stand there twice"


def test_a_transcript_without_words_is_screened(tmp_path):
    ((_, error),) = read(tmp_path, GOOD, {"messages": [ASKED, turn("assistant", text("..."), audio("a"))]}).rejected
    assert (error.status, error.reason) == ("screened", "empty_transcript")


def test_rows_of_other_dialects_have_no_layout_to_keep(tmp_path):
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD, {"audio": "a.wav", "text": "words", "speaker": "s"})
    assert_parts(caught.value, "--layout as-written", "m.jsonl line 2", "ChatML alone", "--layout canonical")


def test_the_same_conversation_twice_is_one_and_another_start_is_another(tmp_path):
    turns = [turn("user", text("hi")), turn("assistant", audio("a")), ASKED, turn("assistant", audio("b"))]
    rows = [{"messages": turns}, {"messages": turns, "start_index": 3}, {"messages": turns, "start_index": 0}]
    table = build_clips(read(tmp_path, *rows), tmp_path)
    assert [(line, error.reason) for line, error in table.rejected] == [(2, "same_row")]
    assert [use.position for use in table.uses] == [0, 1]


def test_a_row_says_whose_voice_its_target_is_and_no_more(tmp_path):
    spoken = [turn("user", audio("a")), turn("assistant", audio("b"))]
    rows = [{"messages": spoken, "speaker": "salma"}, {"messages": [ASKED, turn("assistant", audio("a"))]}]
    rows += [{"messages": [turn("user", audio("c")), turn("assistant", audio("a"))], "speaker": "omar"}]
    table = build_clips(read(tmp_path, *rows), tmp_path)
    speakers = {clip.source: clip.speaker for clip in table.clips.values()}
    (unnamed,) = (key for key, clip in table.clips.items() if clip.source == "c.wav")
    assert speakers == {"a.wav": "omar", "b.wav": "salma", "c.wav": f"unnamed-{unnamed}"}


def test_noisy_references_would_never_be_drawn(tmp_path):
    with pytest.raises(InputError) as caught:
        parse_settings(flags(manifest="m", model="m", dry_run=True, layout="as-written", noisy_references=0.2))
    assert_parts(
        caught.value,
        "command line",
        "--layout as-written and --noisy-references",
        "one of them",
        "rows that are kept as written name their own references",
    )
