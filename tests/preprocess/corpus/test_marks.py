"""Boson's marks for sounds: refused, or with --allow-marks trained as they are spoken."""

import json
import shutil

import pytest
from boson_multimodal.dataset.chatml_dataset import prepare_chatml_sample
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.corpora import Corpora
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.dialogue import dialogue_of, read_dialogue, voice_cloning_dialogue
from preprocess.corpus.shards import Corpus
from preprocess.corpus.text import (
    MARK_TOKENS,
    normalise_text,
    num_letters,
    refuse_special_tokens,
    special_tokens,
    without_marks,
)
from preprocess.judges.text_noise import noise_kinds
from tests.preprocess.helpers import shard, write_jsonl

SPECIALS = [*MARK_TOKENS, "<|eot_id|>", "<|AUDIO_OUT|>"]
WHOLE = ["<SE>[Laughter]</SE>", "<SE_s>[Music]</SE_s>", "<SE_e>[Humming]</SE_e>", "<SE>[\u0636\u062d\u0643]</SE>"]
BROKEN = [
    *("<SE>", "</SE>", "<SE>[Laughter]", "[Laughter]</SE>", "<SE>Laughter</SE>", "<SE>[]</SE>", "<SE>[ ]</SE>"),
    *("<SE>[12]</SE>", "<SE_s>[Music]</SE_e>", "<SE>[<SE>[a]</SE>]</SE>", "<SE>[<|eot_id|>]</SE>", "<SE> [a]</SE>"),
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
    assert noise_kinds(text) == noise_kinds(words)
    assert bool(is_refused(text, allow_marks=False)) == any(part in WHOLE for part in parts)


@given(st.lists(st.sampled_from([*WHOLE, *BROKEN, "one"]), max_size=6).filter(lambda parts: {*parts} & {*BROKEN}))
def test_no_broken_mark_and_no_other_special_token_comes_through(parts):
    """Whatever stands beside it: joined by words, so that two halves make no whole."""
    assert is_refused(" and ".join(parts))


def test_a_long_text_takes_no_time():
    text = "<SE>[" * 20_000 + "a" * 200_000
    assert without_marks(text) == text


def test_what_is_refused_says_how_to_allow_it():
    assert "--allow-marks" in is_refused(WHOLE[0], allow_marks=False).action
    assert "whole marks" in is_refused("<SE>").expected
    assert "--allow-marks" not in is_refused("<|eot_id|>", allow_marks=False).action


@pytest.fixture(scope="module")
def marked(tmp_path_factory, short_folder, model_folder, codec_folder, hubert_folder):
    """What makes a corpus of rows of which one has a mark: (flags, text with the mark)."""
    folder = shutil.copytree(short_folder, tmp_path_factory.mktemp("marked") / "audio")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    rows[0]["text"] = f"{rows[0]['text']} <SE>[Laughter]</SE> {rows[1]['text']}"
    write_jsonl(folder / "marked.jsonl", rows)
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "workers": 1}
    return {"manifest": folder / "marked.jsonl", **tools}, normalise_text(rows[0]["text"])


def test_training_sees_the_prompt_that_inference_feeds(marked, tmp_path, model_folder):
    flags, text = marked
    assert shard(out=tmp_path / "out", allow_marks=True, **flags) == 0
    corpus, base = Corpus(tmp_path / "out"), read_base_model(model_folder)
    assert corpus.info["layout"]["allow_marks"] is True
    metas = {corpus.clip(row).key: corpus.clip(row).meta for row in range(corpus.index.num_rows)}
    key = next(key for key, meta in metas.items() if meta["text_normalised"] == text)
    reference = next(other for other in metas if other != key)
    system_text = corpus.info["layout"]["system_text"]
    trained = read_dialogue(dialogue_of(metas[key], [(reference, metas[reference])]), key, system_text)
    spoken = voice_cloning_dialogue(system_text, [(metas[reference]["text_normalised"], "voice.wav")], text)
    ids, prompt = (prepare_chatml_sample(dialogue, base.tokenizer)[0] for dialogue in (trained, spoken))
    assert ids[: len(prompt)] == prompt
    numbers = [base.tokenizer.convert_tokens_to_ids(token) for token in ("<SE>", "</SE>")]
    assert [number for number in prompt if number in numbers] == numbers
    assert set(MARK_TOKENS) <= {*special_tokens(base.tokenizer)}


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
    with pytest.raises(InputError) as caught:
        shard(out=tmp_path / "out", allow_marks=True, **{**marked[0], "model": base})
    assert caught.value.where == "--allow-marks"
