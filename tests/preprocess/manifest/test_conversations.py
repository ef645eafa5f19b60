"""ChatML rows as published pipelines write them: read by what they have; a refusal says what is lacking."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.audio.recording import Recording
from preprocess.console import show_manifest
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.preprocess.helpers import assert_parts, write_jsonl

MARKS = "<|audio_bos|><|AUDIO|><|audio_eos|>"
SPECIAL = ["<|AUDIO|>", "<|AUDIO_OUT|>", "<|audio_bos|>", "<|audio_eos|>", "<|eot_id|>"]
REF, TARGET = Recording("r.wav"), Recording("t.wav")


def read(path, **how):
    return read_manifest(path, SPECIAL, DEFAULT_SYSTEM_TEXT, **how)


def audio(recording):
    return {"type": "audio", "audio_url": recording.path}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": [text(part) if isinstance(part, str) else audio(part) for part in parts]}


def assistant(*parts):
    return {**user(*parts), "role": "assistant"}


GOOD = {"messages": [user("words"), assistant(Recording("good.wav"))], "speaker": "good"}


def read_row(tmp_path, turns, **more):
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [GOOD, {"messages": turns, **more}]))
    assert not manifest.rejected, manifest.rejected[0][1]
    return manifest.rows[1]


def refusal(tmp_path, turns, **more):
    manifest = read(write_jsonl(tmp_path / "m.jsonl", [GOOD, {"messages": turns, **more}]))
    ((line, error),) = manifest.rejected
    assert line == 2
    return error


SHAPES = {
    "canonical": [user("ref"), assistant(REF), user("said"), assistant(TARGET)],
    "canonical, with marks": [user(f"ref {MARKS}"), assistant(REF), user("said"), assistant(TARGET)],
    "canonical, with marks as a part": [user("ref", MARKS), assistant(REF), user("said"), assistant(TARGET)],
    "canonical, with marks apart": [
        user("ref <|audio_bos|> <|AUDIO|>\n<|audio_eos|> "),
        assistant(REF),
        user("said"),
        assistant(TARGET),
    ],
    "voice cloning": [user("ref", REF, "Say it in this voice."), assistant("said", TARGET)],
    "without an instruction": [user("ref", REF), assistant("said", TARGET)],
    "two instructions": [user("ref", REF, "Speak.", "Now."), assistant("said", TARGET)],
    "the words behind their recording": [user("ref", REF), assistant(TARGET, "said")],
    "turns cut in pieces": [user("ref"), user(REF), user("Speak."), assistant("said"), assistant(TARGET)],
    "an answer with its own words": [user("ref"), assistant(REF), user("Now this:"), assistant("said", TARGET)],
    "content that is no list": [
        {"role": "user", "content": "ref"},
        {"role": "assistant", "content": audio(REF)},
        {"role": "user", "content": text("said")},
        {"role": "assistant", "content": audio(TARGET)},
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Generate speech."}]])
def test_one_reference_and_one_target_with_their_words_are_a_row(shape, system, tmp_path):
    row = read_row(tmp_path, system + SHAPES[shape], speaker="salma")
    assert (row.audio, row.text, row.references, row.speaker) == (TARGET, "said", ((REF, "ref"),), "salma")


@pytest.mark.parametrize(
    "turns",
    [[user("said"), assistant(TARGET)], [user("Say it."), assistant("said", TARGET)], [assistant("said", TARGET)]],
)
def test_a_target_alone_draws_its_reference(turns, tmp_path):
    row = read_row(tmp_path, turns, speaker="salma")
    assert (row.audio, row.text, row.draws_reference) == (TARGET, "said", True)


@pytest.mark.parametrize(
    "misc",
    [{"ref_transcript": "ref", "target_text": "said"}, {"ref_transcript": "ref"}, {"ref_text": "ref"}],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_row_says_beside_its_turns_whose_words_they_are(misc, beside, tmp_path):
    """As zero-shot pipelines write metadata.json into ChatML: the words of the target stand before the reference."""
    more = {"misc": misc} if beside else misc
    row = read_row(tmp_path, [user("said", REF), assistant(TARGET)], **more)
    assert (row.audio, row.text, row.references) == (TARGET, "said", ((REF, "ref"),))
    row = read_row(tmp_path, [user("ref", REF), assistant(TARGET)], misc={"target_text": "said"})
    assert (row.audio, row.text, row.references) == (TARGET, "said", ((REF, "ref"),))
    row = read_row(tmp_path, [user(REF), assistant(TARGET)], misc={"ref_transcript": "ref", "target_text": "said"})
    assert (row.audio, row.text, row.references) == (TARGET, "said", ((REF, "ref"),))


LACKING = {
    "no text of the reference": [user(REF), assistant("said", TARGET)],
    "no text of the reference r.wav": [user(REF, "Speak."), assistant("said", TARGET)],
    "no text of the target t.wav, or of its reference": [user("words", REF), assistant(TARGET)],
    "no text of the target t.wav": [user("ref"), assistant(REF), user(), assistant(TARGET)],
    "no target audio": [user("ref"), assistant(REF), user("said")],
    "no target audio: the last turn": [user("ref", REF), assistant("said")],
    "no target audio: the last": [user("ref", REF, "Speak.")],
    "no target": [],
    "2 audios and 1 texts in a turn of the assistant": [user("ref", REF), assistant("said", TARGET, REF)],
    "1 audios and 2 texts in a turn": [user("ref", REF), assistant("said", "or this", TARGET)],
    "0 audios and 1 texts in a turn": [user("hi"), assistant("hello"), user("said"), assistant(TARGET)],
    "2 texts before the reference": [user("Hear:", "ref", REF), assistant("said", TARGET)],
    "audio of the user among several turns": [user("ref", REF), assistant("so", TARGET)] * 2,
    "by user and assistant in turn": [user("x"), {"role": "tool", "content": "y"}, assistant(TARGET)],
    "no text of the target, as two do not agree": None,
}


@pytest.mark.parametrize("lacking", LACKING)
def test_a_refusal_says_what_is_lacking(lacking, tmp_path):
    turns = LACKING[lacking]
    if turns is None:
        misc = {"ref_transcript": "ref", "target_text": "said"}
        error = refusal(tmp_path, [user("other words", REF), assistant(TARGET)], misc=misc)
        lacking = "no text of the reference"
    else:
        error = refusal(tmp_path, turns)
    assert error.reason == "not_voice_cloning"
    assert_parts(error, "m.jsonl line 2", lacking, "user: reference text, reference audio", "Rewrite the row")


MISPLACED = [
    [user(f"ref {MARKS} and more"), assistant(REF), user("said"), assistant(TARGET)],
    [user(f"{MARKS} ref"), assistant(REF), user("said"), assistant(TARGET)],
    [user(f"ref {MARKS}{MARKS}"), assistant(REF), user("said"), assistant(TARGET)],
    [user("ref <|AUDIO|>"), assistant(REF), user("said"), assistant(TARGET)],
    [user("ref", REF), assistant(f"said {MARKS}", TARGET)],
    [user(f"ref {MARKS}", REF), assistant("said", TARGET)],
]


@pytest.mark.parametrize("turns", MISPLACED, ids=str)
def test_marks_elsewhere_are_refused_as_special_tokens(turns, tmp_path):
    error = refusal(tmp_path, turns)
    assert error.reason == "special_token"
    assert_parts(error, "m.jsonl line 2", "the special token", "only words", "Remove it")


def test_marks_are_no_words_in_columns_of_other_dialects(tmp_path):
    rows = [GOOD, {"audio": "a.wav", "text": f"said {MARKS}", "speaker": "s"}]
    ((_, error),) = read(write_jsonl(tmp_path / "m.jsonl", rows)).rejected
    assert error.reason == "special_token"


def test_marks_that_came_off_are_counted_and_printed(tmp_path, capsys):
    rows = [{"messages": SHAPES["canonical, with marks"]}, {"messages": SHAPES["canonical"]}]
    rows[1]["messages"] = [*rows[1]["messages"][:2], user(f"other {MARKS}"), assistant(Recording("u.wav"))]
    path = write_jsonl(tmp_path / "m.jsonl", rows)
    manifest = read(path)
    assert manifest.audio_marks == 2
    show_manifest(manifest, build_clips(manifest, tmp_path), keep_system=False)
    assert f"  2 marks {MARKS} came off the texts before recordings\n" in capsys.readouterr().out
    kept = read(path, as_written=True)
    assert kept.audio_marks == 2
    assert kept.rows[0].turns[1].parts == ("ref",)


@pytest.mark.parametrize(
    ("content", "answer", "audios", "found"),
    [
        ("ref<audio>Speak.", "said<audio>", ["r.wav", "t.wav", "u.wav"], '1 of 3 audios without a mark <audio>: ["u'),
        ("ref", "said<audio>", ["r.wav", "t.wav"], "1 of 2 audios without a mark"),
        ("ref", "said", ["t.wav"], "1 of 1 audios without a mark"),
        ("ref<audio>", "said<audio>", ["r.wav"], "audio without a path"),
        ("ref<audio>", "said<audio>", [], "audio without a path"),
        ("ref<audio>", "said<audio>", "r.wav", 'audios = "r.wav"'),
    ],
)
def test_audios_and_their_marks_must_be_as_many(content, answer, audios, found, tmp_path):
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    error = refusal(tmp_path, turns, audios=audios)
    assert (error.reason, found in error.found) == ("malformed_row", True)


PARTS = st.lists(st.sampled_from(["x", "y", REF, TARGET]), max_size=3)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), PARTS), max_size=4)


@given(turns=TURNS)
@settings(deadline=None, max_examples=300)
def test_no_audio_of_a_row_is_lost_and_no_word_is_made_up(turns, tmp_path_factory):
    """Every recording of the turns is in the row, with a text that stands in them; or the row is refused by line."""
    messages = [{**user(*parts), "role": role} for role, parts in turns]
    path = write_jsonl(tmp_path_factory.mktemp("turns") / "m.jsonl", [GOOD, {"messages": messages}])
    manifest = read(path)
    if manifest.rejected:
        return
    row = manifest.rows[1]
    audios = [part for _, parts in turns for part in parts if isinstance(part, Recording)]
    assert [recording for recording, _ in (*row.references, (row.audio, row.text))] == audios
    assert {said for _, said in row.recordings} <= {part for _, parts in turns for part in parts}
    assert turns[-1][0] == "assistant"
