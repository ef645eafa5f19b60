"""Files with two channels that differ are counted in the summary and on the page, with how to pick one."""

import numpy as np
import pytest
import soundfile

from preprocess import console, pipeline
from preprocess.corpus.shards import Corpus
from preprocess.encode import make_shard
from preprocess.encode.reuse import recording_facts
from preprocess.finish.duplicates import find_duplicates, overlapping_pairs
from preprocess.finish.two_channels import find_two_channels
from preprocess.plan.clips import ClipPlan
from tests.preprocess.helpers import shard, write_jsonl

RATE_HZ = 22050


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory, short_folder, model_folder, codec_folder, hubert_folder):
    """(folder, flags): five files with a speaker per channel, two with the same sound on both, one mono."""
    folder = tmp_path_factory.mktemp("channels")
    samples = soundfile.read(short_folder / "salma/000.wav")[0]
    rows = []
    for number in range(8):
        other = np.roll(samples, 3000) * 0.5 if number < 5 else samples
        both = np.stack([samples, other], axis=1) * (1 - number / 20)
        soundfile.write(folder / f"{number}.wav", both if number < 7 else samples, RATE_HZ)
        rows.append({"audio": f"{number}.wav", "text": "نعم", "speaker": "salma"})
    manifest = write_jsonl(folder / "m.jsonl", rows)
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    return folder, {"manifest": manifest, "workers": 1, "waveforms": "none", **tools}


def test_clips_of_two_channels_are_counted_with_examples(two_channels, capsys):
    folder, given = two_channels
    assert shard(out=folder / "out", **given) == 0
    corpus = Corpus(folder / "out")
    count, examples = find_two_channels(corpus)
    assert (count, len(examples)) == (5, 3)
    said = capsys.readouterr().out
    assert "channels: 5 clips have two that differ; their mean was encoded" in said
    assert "a row's `channel` (0 for the first) picks one" in said
    assert examples[0] in said
    page = (folder / "out/report.html").read_text()
    assert "5 clips have two channels that differ; their mean was encoded" in page
    assert examples[2] in page
    by_source = {corpus.meta(row)["source"]: corpus.meta(row)["quality"]["channel_difference"] for row in range(8)}
    assert [by_source[f"{number}.wav"] for number in (5, 6, 7)] == [0, 0, 0]


def test_a_recipe_drops_them(two_channels, tmp_path):
    folder, given = two_channels
    (tmp_path / "s.yaml").write_text("max_channel_difference: 0.5")
    assert shard(out=tmp_path / "out", screening=tmp_path / "s.yaml", **given) == 0
    assert Corpus(tmp_path / "out").info["rows"] == {"written": 3, "merged": 0, "screened": 5, "failed": 0}
    assert set(Corpus(tmp_path / "out").info["lost_hours"]) == {"channels_differ"}


def test_a_corpus_in_which_it_was_not_measured_is_reused_and_measured(two_channels, tmp_path, monkeypatch, capsys):
    folder, given = two_channels
    given = given | {"audio_root": folder}
    assert shard(out=tmp_path / "old", **given) == 0
    meta = Corpus.meta

    def without_figure(corpus, row):
        found = meta(corpus, row)
        del found["quality"]["channel_difference"]
        return found

    def fail(*_):
        raise AssertionError("encoded")

    monkeypatch.setattr(Corpus, "meta", without_figure)
    monkeypatch.setattr(make_shard, "encode_waveform", fail)
    monkeypatch.setattr(pipeline, "write_report", lambda folder: None)  # they read the figure too
    monkeypatch.setattr(console, "channel_lines", lambda corpus: [])
    assert shard(out=tmp_path / "new", reuse=tmp_path / "old", **given) == 0
    assert "reused: 8 clips" in capsys.readouterr().out
    for name in ("shard-000000.tar", "index.parquet"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()


def test_each_channel_of_a_file_is_a_recording_of_its_own(two_channels):
    """For --reuse, and for what counts as a copy of another clip; the mean of both is a third one."""
    folder, _ = two_channels
    plans = {
        key: ClipPlan(
            key, f"0.wav^{channel}", str(folder / "0.wav"), key, key, part=(None, None, None, None, channel)
        )
        for key, channel in (("left", 0), ("right", 1), ("both", None))
    }
    facts = [recording_facts(plan) for plan in plans.values()]
    assert [fact.get("channel") for fact in facts] == [0, 1, None]
    rows = {key: {"draws_reference": True, "source_sha256": "x", "duration_sec": 1.0} for key in plans}
    assert find_duplicates(rows, plans) == {}
    assert list(overlapping_pairs(rows, plans)) == []
    left, right = (plans[key].recording.decode().waveform for key in ("left", "right"))
    assert not np.allclose(left, right)
