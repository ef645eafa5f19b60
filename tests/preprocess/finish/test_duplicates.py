"""The same recording under two names: one target of it, or none where its rows disagree; every row accounted for."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from preprocess.corpus.shards import Corpus
from preprocess.finish.accounts import validation_clips
from preprocess.finish.duplicates import find_duplicates, overlapping_pairs
from preprocess.plan.clips import ClipPlan, ClipTable
from tests.preprocess.helpers import assert_parts, failures, row_failure, shard, write_jsonl


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
    entries = enumerate(corpus.index.to_pylist())
    return {corpus.clip(row).meta["source"]: entry for row, entry in entries if not entry["derived_from"]}


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
        assert_parts(record, name, "the same audio as", "one transcript, speaker and system text", "Listen")
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


@pytest.fixture(scope="module")
def two_manifests(tmp_path_factory, short_folder, model_folder, codec_folder, hubert_folder):
    """Training rows, some of them copies of what --val-manifest holds out, or parts that overlap with it."""
    folder = tmp_path_factory.mktemp("leak")
    shutil.copytree(short_folder, folder, dirs_exist_ok=True)
    good = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    pieces = [soundfile.read(folder / row["audio"], dtype="int16")[0] for row in good]
    soundfile.write(folder / "talk.flac", np.concatenate(pieces), 22050)
    for name in ("copy.wav", "reference.wav"):
        shutil.copy(folder / good[0]["audio"], folder / name)
    train = [
        *good[2:4],
        {**good[0], "audio": "copy.wav", "text": "كلام آخر"},  # 3: the same audio under another name
        {"audio": good[4]["audio"], "text": "نعم", "reference_audio": "reference.wav", "reference_text": "لا"},  # 4
        {"audio": "talk.flac", "start": 0.0, "end": 0.9, "text": "نعم", "speaker": "talk"},  # 5: all of 0.2 to 0.8
        {"audio": "talk.flac", "start": 0.75, "end": 1.5, "text": "نعم", "speaker": "talk"},  # 6: 0.05 s of it
    ]
    val = [good[0], {"audio": "talk.flac", "start": 0.2, "end": 0.8, "text": "نعم", "speaker": "talk"}]
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    given = {
        "manifest": write_jsonl(folder / "m.jsonl", train),
        "val_manifest": write_jsonl(folder / "val.jsonl", val),
    }
    assert shard(out=folder / "out", workers=1, noisy_references=1, **given, **tools) == 0
    return Corpus(folder / "out")


def test_training_leaves_out_what_the_validation_manifest_has_under_another_name(two_manifests):
    out = two_manifests.folder
    rows = [record for record in failures(out) if record["line"]]
    assert [(r["file"], r["line"], r["status"], r["reason"]) for r in rows] == [
        ("m.jsonl", 3, "screened", "in_validation"),
        ("m.jsonl", 4, "screened", "reference_in_validation"),
        ("m.jsonl", 5, "screened", "in_validation"),
    ]
    assert_parts(
        rows[0],
        "copy.wav",
        "the same audio as salma/000.wav of --val-manifest",
        "training never uses",
        "leaves it out",
    )
    assert_parts(
        rows[2], "talk.flac@0.0-0.9", "the same audio as talk.flac@0.2-0.8", "training never uses", "leaves it out"
    )
    assert two_manifests.info["rows"] == {"written": 5, "merged": 0, "screened": 3, "failed": 0}


def test_no_clip_in_use_for_training_is_heard_in_validation(two_manifests):
    index = by_source(two_manifests)
    leaked = ("copy.wav", "reference.wav", "talk.flac@0.0-0.9")
    for name in leaked:
        assert (index[name]["use"], index[name]["reason"]) == (False, "in_validation")
    assert {index[name]["use"] for name in ("salma/000.wav", "talk.flac@0.2-0.8", "talk.flac@0.75-1.5")} == {True}
    keys = [index[name]["key"] for name in leaked]
    copies = [entry for entry in two_manifests.index.to_pylist() if entry["derived_from"] in keys]
    assert copies
    assert not any(copy["use"] for copy in copies)


@pytest.mark.parametrize(("start_sec", "is_shared"), [(0.0, True), (0.5, True), (0.51, False), (1.0, False)])
def test_parts_of_a_file_are_the_same_sound_from_half_of_the_shorter_on(start_sec, is_shared):
    parts = {"a": (0.0, 1.0), "b": (start_sec, start_sec + 2.0), "c": (0.0, 9.0)}
    clips = {key: ClipPlan(key, key, "talk.flac", part=part) for key, part in parts.items()}
    rows = {key: {"source_sha256": "x", "duration_sec": end - start} for key, (start, end) in parts.items()}
    rows["c"]["source_sha256"] = "another file"
    assert list(overlapping_pairs(rows, clips)) == [("a", "b")] * is_shared


def test_voices_with_the_same_recording_stay_on_one_side():
    """Two rows that name references of two voices, and speak the same audio under two names."""
    sounds = {"a": ("one", "x"), "b": ("two", "x"), "r": ("one", "y"), "s": ("two", "z")}
    sounds |= {f"{n}{m}": (f"voice{n}", f"{n}{m}") for n in range(4) for m in range(4)}
    rows = {
        key: {"speaker": speaker, "source_sha256": sha256, "duration_sec": 1.0, "use": True}
        for key, (speaker, sha256) in sounds.items()
    }
    table = ClipTable({key: ClipPlan(key, key, key) for key in rows}, [], [], 0)
    held_out = [validation_clips(rows, table, [], {"val_speakers": "2", "seed": seed}) for seed in range(20)]
    assert any("a" in keys for keys in held_out)
    assert all(("a" in keys) == ("b" in keys) for keys in held_out)


def test_two_system_texts_for_one_recording_are_a_conflict_too():
    clips = {key: ClipPlan(key, key, f"{key}.wav", text="نعم", speaker="s", system_text=key) for key in ("a", "b")}
    rows = {key: {"source_sha256": "x", "draws_reference": True} for key in clips}
    for key, (reason, error) in find_duplicates(rows, clips).items():
        assert (reason, error.status, error.where) == ("two_system_texts", "screened", f"{key}")
    assert find_duplicates(rows, clips).keys() == {"a", "b"}
    clips["b"] = replace(clips["b"], system_text="a")
    assert [reason for reason, _ in find_duplicates(rows, clips).values()] == ["duplicate_of=a"]
