"""Files with two channels that differ are counted in the summary and on the page, with how to pick one."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from preprocess.corpus.shards import Corpus
from preprocess.encode import reuse
from preprocess.finish.two_channels import find_two_channels
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


def test_an_earlier_corpus_without_the_figure_is_not_reused(two_channels, tmp_path, monkeypatch, capsys):
    folder, given = two_channels
    given = given | {"audio_root": folder}
    assert shard(out=tmp_path / "old", **given) == 0
    assert shard(out=tmp_path / "new", reuse=tmp_path / "old", **given) == 0
    assert "reused: 8 clips" in capsys.readouterr().out
    meta = Corpus.meta

    def without_figure(corpus, row):
        found = meta(corpus, row)
        del found["quality"]["channel_difference"]
        return found

    earlier = reuse.EarlierCorpus(tmp_path / "old")
    sha256 = meta(earlier.corpus, 0)["source_sha256"]
    recording = SimpleNamespace(channel=None, start_sec=None, end_sec=None, sha256=lambda: sha256)
    plan = SimpleNamespace(recording=recording, augmentation=None)
    assert earlier.find(plan, waveform=False).sha256 == sha256
    monkeypatch.setattr(reuse.Corpus, "meta", without_figure)
    assert earlier.find(plan, waveform=False) is None
