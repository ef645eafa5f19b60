"""The same recording under two names: one target of it, or none where its rows disagree; every row accounted for."""

import json
import shutil

import pytest

from preprocess.shards import Corpus
from tests.preprocess.helpers import assert_parts, row_failure, shard, write_jsonl


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, short_folder, model_folder, codec_folder, hubert_folder):
    """Two good rows, then copies of other recordings, dealt into several shards."""
    folder = tmp_path_factory.mktemp("copies")
    shutil.copytree(short_folder, folder, dirs_exist_ok=True)
    good = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    one, two, three, four = (row for row in good if row["audio"].endswith("000.wav"))
    for name, row in {"a": one, "b": one, "c": two, "d": three, "e": four}.items():
        shutil.copy(folder / row["audio"], folder / f"{name}.wav")
    rows = [
        one,  # 1
        {**one, "audio": "a.wav"},  # 2: a copy
        {**one, "audio": "b.wav", "text": f" {one['text']}\u200f"},  # 3: a copy, typed otherwise
        two,  # 4
        {**two, "audio": "c.wav", "text": "كلام آخر"},  # 5: other words
        three,  # 6
        {**three, "audio": "d.wav", "speaker": "someone"},  # 7: another speaker
        four,  # 8
        {"audio": "e.wav", "text": four["text"], "reference_audio": "a.wav", "reference_text": "نعم"},  # 9: a prompt
    ]
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    manifest, out = write_jsonl(folder / "m.jsonl", rows), folder / "out"
    # The conflicts are 4 of 9 rows: more than the default warning share, which is no error.
    assert shard(manifest=manifest, out=out, workers=1, hours_per_shard=0.0003, val_speakers=0, **tools) == 0
    return Corpus(out)


def by_source(corpus):
    index = corpus.index.to_pylist()
    return {corpus.clip(row).meta["source"]: entry for row, entry in enumerate(index)}


def test_copies_are_merged_into_the_first(corpus):
    index = by_source(corpus)
    names = sorted(("a.wav", "b.wav", "salma/000.wav"), key=lambda name: index[name]["key"])
    first, *others = (index[name] for name in names)
    assert (first["use"], first["reason"]) == (True, None)
    for name, entry in zip(names[1:], others, strict=True):
        assert entry["reason"] == (None if name == "a.wav" else f"duplicate_of={first['key']}")
        assert entry["use"] == (name == "a.wav")  # row 9 speaks in its voice
        assert not entry["draws_reference"]
    assert corpus.info["rows"]["merged"] == 2


def test_copies_that_disagree_are_screened_all_of_them(corpus):
    index = by_source(corpus)
    for line, name, reason in [
        (4, "omar/000.wav", "two_transcripts"),
        (5, "c.wav", "two_transcripts"),
        (6, "huda/000.wav", "two_speakers"),
        (7, "d.wav", "two_speakers"),
    ]:
        record = row_failure(corpus.folder, line)
        assert (record["status"], record["reason"]) == ("screened", reason)
        assert_parts(record, name, "the same audio as", "one transcript and one speaker", "Listen")
        assert (index[name]["use"], index[name]["reason"]) == (False, reason)


def test_a_row_that_names_its_reference_is_a_prompt_of_its_own(corpus):
    index = by_source(corpus)
    assert index["karim/000.wav"]["draws_reference"]
    assert index["e.wav"]["use"]
    assert len(index["e.wav"]["dialogues"]) == 1


def test_both_accounts_balance(corpus):
    assert corpus.info["rows"] == {"written": 3, "merged": 2, "screened": 4, "failed": 0}
    assert corpus.info["clips"] == {"written": 9, "screened": 0, "failed": 0}
    assert len(corpus.info["shards"]) > 3
