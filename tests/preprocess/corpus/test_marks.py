"""Boson's marks for sounds: refused, or with --allow-marks trained as they are spoken."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from engine.base.recipe import Lora
from engine.batch.loader import PackReader
from engine.checkpoint.checkpoint import read_state
from engine.merge.folder import merge_checkpoint
from engine.plan.corpora import Corpora
from engine.plan.plan import Sample
from engine.speak.corpus_table import show_corpus
from engine.speak.generate import choose_layout, clone_voice, load_engine
from engine.speak.voice_training import FACTS_FILE, read_facts
from preprocess.common.errors import InputError
from preprocess.common.record import SEAL, write_record
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.shards import Corpus
from preprocess.corpus.text import (
    MARK_TOKENS,
    arabic_share,
    has_marks,
    normalise_text,
    num_digits,
    num_letters,
    refuse_special_tokens,
    without_marks,
)
from preprocess.judges.text_noise import noise_kinds
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.preprocess.helpers import assert_parts, failures, refused, shard, write_jsonl

MARK = "<SE>[Laughter]</SE>"
SPECIALS = [*MARK_TOKENS, "<|eot_id|>", "<|AUDIO_OUT|>", "BARE_TOKEN"]
BOSON = [
    *(f"<SE>[{sound}]</SE>" for sound in ("Laughter", "Music", "Applause", "Cheering", "Cough", "Humming")),
    *(f"<{tag}>[{sound}]</{tag}>" for tag in ("SE_s", "SE_e") for sound in ("Humming", "Music", "Singing")),
]
WHOLE = [*BOSON, "<SE>[\u0636\u062d\u0643]</SE>", "<SE>[two  words, 2]</SE>", "<SE>[cafe\u0301]</SE>"]
BROKEN = [
    *("<SE>", "</SE>", "<SE>[Laughter]", "[Laughter]</SE>", "<SE>Laughter</SE>", "<SE>[]</SE>", "<SE>[ ]</SE>"),
    *("<SE>[12]</SE>", "<SE_s>[Music]</SE_e>", "<SE>[<SE>[a]</SE>]</SE>", "<SE>[<|eot_id|>]</SE>", "<SE> [a]</SE>"),
    *("<SE>[BARE_TOKEN]</SE>", "<SE>[a BARE_TOKEN]</SE>", "<SE>[a]", "[a]</SE_s>", "</SE_e>", "<SE_s>[a] </SE_s>"),
    *("<SE><SE>[a]</SE>[b]</SE>", "<SE>[a</SE>", f"<SE>[{'a' * 81}]</SE>", "<SE_s>[a]</SE>", "<SE>[a]</SE_s>"),
]


def is_refused(text, allow_marks=True):
    try:
        refuse_special_tokens("row 1", "transcript", text, SPECIALS, allow_marks)
    except InputError as error:
        return error
    return None


@given(st.lists(st.sampled_from([*WHOLE, "one", "\u0635\u0628\u0627\u062d", " ", "[b]", "<i>"]), max_size=8))
def test_whole_marks_are_allowed_wherever_they_stand_and_say_nothing(parts):
    text = normalise_text(" ".join(parts))
    assert normalise_text(text) == text
    assert is_refused(text) is None
    words = " ".join(part for part in parts if part not in WHOLE)
    assert num_letters(text) == num_letters(words)
    assert num_digits(text) == num_digits(words)
    assert arabic_share(text) == arabic_share(words)
    assert noise_kinds(text, "ar", allow_marks=True) == noise_kinds(words, "ar", allow_marks=True)
    assert has_marks(text) == any(part in WHOLE for part in parts)
    assert bool(is_refused(text, allow_marks=False)) == any(part in WHOLE for part in parts)


@given(st.lists(st.sampled_from([*WHOLE, *BROKEN, "one"]), max_size=6).filter(lambda parts: {*parts} & {*BROKEN}))
def test_no_broken_mark_and_no_other_special_token_comes_through(parts):
    """Whatever stands beside it: joined by words, so that two halves make no whole."""
    assert is_refused(" and ".join(parts))


@given(st.lists(st.sampled_from([*"[]<>|/", "SE", "SE_s", *WHOLE, *BROKEN, "one", " "]), max_size=12))
def test_what_is_allowed_is_whole_marks_and_words_in_any_order_of_the_pieces(pieces):
    text = normalise_text("".join(pieces))
    if is_refused(text) is None:
        rest = without_marks(text)
        assert not [token for token in (*SPECIALS, "</SE_s>", "</SE_e>") if token in rest]
        assert not is_refused(rest, allow_marks=False)


@pytest.mark.parametrize("mark", WHOLE)
def test_the_normaliser_changes_a_mark_only_as_it_changes_words(mark):
    once = normalise_text(f"\u0640one\u00a0{mark}\n two")
    assert once == f"one {normalise_text(mark)} two"
    assert has_marks(once)
    assert normalise_text(once) == once
    words = mark[mark.index("[") : mark.index("]") + 1]
    assert normalise_text(mark) == mark.replace(words, normalise_text(words))


def test_a_long_text_takes_no_time():
    for text in ("<SE>[" * 20_000 + "a" * 200_000, "<SE>[a" * 100_000, "<SE>[" + "1" * 500_000 + "]</SE>"):
        assert without_marks(text) == text


def test_marks_are_noise_where_they_are_not_allowed():
    assert noise_kinds("one <SE>[Laughter]</SE>", allow_marks=False) == ["tags", "placeholders"]
    assert noise_kinds("one [Laughter]", allow_marks=True) == ["placeholders"]
    assert noise_kinds("one <SE>[Laughter]</SE> &amp;", allow_marks=True) == ["html_entities"]


def test_what_is_refused_says_how_to_allow_it():
    assert "--allow-marks" in is_refused(WHOLE[0], allow_marks=False).action
    assert "whole marks" in is_refused("<SE>").expected
    assert "</SE_s> of a broken mark" in is_refused("one [Music]</SE_s>").found
    assert "--allow-marks" not in is_refused("<|eot_id|>", allow_marks=False).action
    with pytest.raises(InputError) as caught:  # where no flag allows them
        refuse_special_tokens("--system-text", "system text", WHOLE[0], SPECIALS)
    assert "--allow-marks" not in caught.value.action


@pytest.fixture(scope="module")
def marked(tmp_path_factory, short_folder, model_folder, codec_folder, hubert_folder):
    """What makes a corpus of rows of which one has a mark: (flags, text with the mark)."""
    folder = shutil.copytree(short_folder, tmp_path_factory.mktemp("marked") / "audio")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    first, rest = rows[0]["text"].split(" ", 1)
    rows[0]["text"] = f"{first} {MARK} {rest}"
    write_jsonl(folder / "marked.jsonl", rows)
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "workers": 1}
    return {"manifest": folder / "marked.jsonl", **tools}, normalise_text(rows[0]["text"])


@pytest.fixture(scope="module")
def corpus_folder(marked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("allowed") / "out"
    assert shard(out=folder, allow_marks=True, **marked[0]) == 0
    return folder


def test_training_sees_the_prompt_that_inference_feeds(
    marked, corpus_folder, model_folder, codec_folder, hubert_folder, tmp_path, monkeypatch
):
    """The loader's tokens up to the target are those that the serve engine makes of generate's dialogue."""
    text, corpora = marked[1], Corpora([corpus_folder])
    reader = PackReader(corpora, model_folder, "packed")
    texts = [corpora.clip(row).meta["text_normalised"] for row in range(corpora.index.num_rows)]
    other = next(row for row, said in enumerate(texts) if said != text)
    engine, _ = load_engine(model_folder, codec_folder, hubert_folder, "cpu")
    prompts = []

    def generate(dialogue, force_audio_gen, **settings):
        prompts.append(engine._prepare_inputs(dialogue, force_audio_gen=force_audio_gen)["input_ids"][0].tolist())

    monkeypatch.setattr(engine, "generate", generate)
    soundfile.write(tmp_path / "voice.wav", np.zeros(24000), 24000)
    for target, reference in ((texts.index(text), other), (other, texts.index(text))):
        planned = Sample(target, -1, (reference,), num_tokens=0)
        trained = reader.read_sample(planned).tokens.input_ids.tolist()
        pairs = [(texts[reference], tmp_path / "voice.wav")]
        clone_voice(engine, corpora.info["layout"], pairs, f" {texts[target]}\n")
        start_audio_stop = 4  # <|audio_out_bos|>, the audio, <|audio_eos|>, <|eot_id|>
        assert prompts[-1] == trained[:-start_audio_stop]
        numbers = reader.tokenizer.convert_tokens_to_ids(["<SE>", "</SE>"])
        assert [number for number in prompts[-1] if number in numbers] == numbers
    with pytest.raises(InputError, match="--allow-marks"):
        clone_voice(engine, {**corpora.info["layout"], "allow_marks": None}, pairs, text)


def test_the_index_counts_the_tokens_of_marks_and_no_letters_of_theirs(marked, corpus_folder, model_folder):
    text, corpus, base = marked[1], Corpus(corpus_folder), read_base_model(model_folder)
    found = [
        (entry["text_tokens"], entry["letters_per_sec"], corpus.meta(row))
        for row, entry in enumerate(corpus.index.to_pylist())
        if corpus.meta(row)["text_normalised"] == text
    ]
    ((num_tokens, letters_per_sec, meta),) = found
    assert num_tokens == base.num_tokens(text) == base.num_tokens(text.replace(MARK, "[Laughter]")) + 2
    quality = meta["quality"]
    spoken_sec = meta["duration_sec"] - quality["leading_silence_sec"] - quality["trailing_silence_sec"]
    assert letters_per_sec == pytest.approx(num_letters(text.replace(MARK, "")) / spoken_sec, rel=1e-3)
    assert corpus.info["text_noise"] == {}


def test_that_marks_are_allowed_reaches_the_merged_folder(corpus_folder, model_folder, tmp_path, capsys):
    """From corpus.json into state.json, voice_training.json and what generate refuses."""
    layout = Corpus(corpus_folder).info["layout"]
    assert layout["allow_marks"] is True
    lora = random_lora(model_folder, Lora(mode="attention", rank=2, alpha=4))
    checkpoint = save_checkpoint(tmp_path / "run", model_folder, lora, more={"layout": layout})
    assert read_state(checkpoint)["layout"]["allow_marks"] is True
    merge_checkpoint(checkpoint, None, tmp_path / "merged", verify="none")
    read = read_facts(tmp_path / "merged")["layout"]
    assert read["allow_marks"] is True
    engine = SimpleNamespace(tokenizer=read_base_model(model_folder).tokenizer)
    assert choose_layout(engine, read, None) == choose_layout(engine, read, None, allow_marks=True) == read
    assert choose_layout(engine, read, "Another text.")["allow_marks"] is True
    assert "warning: marks" not in capsys.readouterr().out
    show_corpus(Corpus(corpus_folder), 1)
    assert "texts may have marks for sounds" in capsys.readouterr().out
    facts = {name: value for name, value in read_facts(tmp_path / "merged").items() if name != SEAL}
    write_record(tmp_path / "merged" / FACTS_FILE, {**facts, "layout": {**layout, "allow_marks": "perhaps"}})
    with pytest.raises(InputError, match="allow_marks"):
        read_facts(tmp_path / "merged")


def test_an_unfinished_corpus_is_not_continued_with_the_other_choice(marked, corpus_folder, tmp_path):
    folder = shutil.copytree(corpus_folder, tmp_path / "out")
    (folder / "corpus.json").unlink()
    error = refused(out=folder, **{**marked[0], "max_failure_share": 1})
    assert_parts(error, str(folder), "layout.allow_marks = None", "layout.allow_marks = True", "same settings")
    assert shard(out=folder, allow_marks=True, **marked[0]) == 0


def test_a_transcript_of_marks_alone_is_empty_and_a_system_text_has_none(marked, tmp_path):
    flags, _ = marked
    path = flags["manifest"].with_name("lone.jsonl")
    rows = [json.loads(line) for line in flags["manifest"].read_text().splitlines()]
    rows[1]["text"], rows[2]["text"] = MARK, f"{MARK} <SE_s>"
    flags = {**flags, "manifest": write_jsonl(path, rows), "max_failure_share": 1}
    assert shard(out=tmp_path / "out", allow_marks=True, **flags) == 0
    assert [record["reason"] for record in failures(tmp_path / "out")] == ["empty_transcript", "special_token"]
    assert shard(out=tmp_path / "without", **flags) == 0
    assert [record["reason"] for record in failures(tmp_path / "without")] == ["special_token"] * 3
    error = refused(out=tmp_path / "system", allow_marks=True, system_text=f"Speak. {MARK}", **flags)
    assert error.where == "--system-text"


@pytest.mark.parametrize("command", ["validate_only", "dry_run"])
def test_previews_count_as_a_run_does(marked, command, capsys):
    assert shard(allow_marks=True, **{command: True}, **marked[0]) == 0
    said = capsys.readouterr()
    assert "8 rows of columns; 8 samples" in said.out
    assert "noise in transcripts" not in said.out
    assert shard(**{command: True, "max_failure_share": 1}, **marked[0]) == 0
    said = capsys.readouterr()
    assert "8 rows of columns; 7 samples" in said.out
    assert "allow marks with --allow-marks" in said.err


def test_without_the_flag_the_row_fails_and_corpora_that_differ_are_not_mixed(marked, tmp_path):
    flags, _ = marked
    assert shard(out=tmp_path / "without", max_failure_share=1, **flags) == 0
    failures = [json.loads(line) for line in (tmp_path / "without" / "failures.jsonl").read_text().splitlines()]
    assert [failure["reason"] for failure in failures] == ["special_token"]
    assert "--allow-marks" in failures[0]["action"]
    assert shard(out=tmp_path / "with", allow_marks=True, **flags) == 0
    with pytest.raises(InputError, match="layout.allow_marks True"):
        Corpora([tmp_path / "without", tmp_path / "with"])


def test_a_tokenizer_without_the_tokens_can_not_allow_marks(marked, tmp_path, model_folder):
    base = shutil.copytree(model_folder, tmp_path / "base")
    for path in base.glob("*token*.json"):
        path.write_text(path.read_text().replace("</SE>", "</XX>"))
    error = refused(out=tmp_path / "out", allow_marks=True, **{**marked[0], "model": base})
    assert_parts(error, "--allow-marks", "special tokens </SE>", ", ".join(MARK_TOKENS), "Leave it out")
    engine = SimpleNamespace(tokenizer=read_base_model(base).tokenizer)
    with pytest.raises(InputError, match="lacks the special tokens </SE>"):
        choose_layout(engine, {"system_text": "Speak.", "normaliser_version": 3}, None, allow_marks=True)


def test_marks_that_the_tokenizer_has_no_tokens_for_are_counted_as_noise(marked, tmp_path, model_folder, capsys):
    base = shutil.copytree(model_folder, tmp_path / "base")
    for path in base.glob("*token*.json"):
        path.write_text(re.sub("(</?)SE", r"\1XX", path.read_text()))
    assert shard(out=tmp_path / "out", **{**marked[0], "model": base}) == 0
    assert {*Corpus(tmp_path / "out").info["text_noise"]} == {"tags", "placeholders"}
