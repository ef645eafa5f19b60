"""--reuse: what did not change is not encoded again, and the shards are those of a run that encodes everything."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from preprocess.common.record import write_record
from preprocess.corpus.shards import Corpus
from preprocess.encode import make_shard
from tests.preprocess.helpers import assert_parts, folder_bytes, refused, shard, write_jsonl

HOURS_PER_SHARD = 0.0004  # two clips of 0.8 s


@pytest.fixture(scope="module")
def tools(model_folder, codec_folder, hubert_folder):
    given = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    return {**given, "hours_per_shard": HOURS_PER_SHARD, "workers": 1}


@pytest.fixture(scope="module")
def audio(tmp_path_factory, short_folder):
    """A folder of recordings, and rows: eight files, two parts of a ninth."""
    folder = tmp_path_factory.mktemp("audio") / "audio"
    shutil.copytree(short_folder, folder)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    samples, rate_hz = soundfile.read(folder / rows[0]["audio"])
    soundfile.write(folder / "long.wav", [*samples, *samples[::-1]], rate_hz)
    about = {"audio": "long.wav", "speaker": rows[0]["speaker"]}
    parts = [{"text": "واحد", "start": 0.0, "end": 0.7}, {"text": "اثنان", "start": 0.7, "end": 1.5}]
    return folder, rows + [{**about, **part} for part in parts]


@pytest.fixture(scope="module")
def old(tmp_path_factory, audio, tools):
    """A finished corpus of all rows."""
    folder, rows = audio
    out = tmp_path_factory.mktemp("old") / "out"
    manifest = write_jsonl(out.parent / "corpus.jsonl", rows)
    assert shard(manifest=manifest, audio_root=folder, out=out, **tools) == 0
    return out


@pytest.fixture
def no_encode(monkeypatch):
    """Workers are forked from here: none of them can encode."""

    def fail(*_):
        raise AssertionError("encoded")

    monkeypatch.setattr(make_shard, "encode_waveform", fail)


def test_corrected_words_and_speakers_encode_nothing_and_give_a_fresh_runs_bytes(
    tmp_path, audio, tools, old, no_encode, monkeypatch, capsys
):
    folder, rows = audio
    corrected = [dict(row) for row in rows]
    corrected[3]["text"] += " شكرا"
    corrected[5]["speaker"] = "salma"
    given = {"manifest": write_jsonl(tmp_path / "corpus.jsonl", corrected), "audio_root": folder, **tools}
    assert shard(out=tmp_path / "reused", reuse=old, **given) == 0
    assert f"reused: {len(rows)} clips of {old}" in capsys.readouterr().out
    monkeypatch.undo()
    assert shard(out=tmp_path / "fresh", **given) == 0
    assert folder_bytes(tmp_path / "reused") == folder_bytes(tmp_path / "fresh")
    texts = {Corpus(tmp_path / "reused").meta(row)["text"] for row in range(len(rows))}
    assert corrected[3]["text"] in texts


def test_a_file_of_another_name_is_reused_and_one_that_changed_is_encoded(tmp_path, audio, tools, old, capsys):
    """As is a part with another end, and a file that is new."""
    folder, rows = shutil.copytree(audio[0], tmp_path / "audio"), [dict(row) for row in audio[1]]
    (folder / rows[0]["audio"]).rename(folder / "renamed.wav")
    rows[0]["audio"] = "renamed.wav"
    samples, rate_hz = soundfile.read(folder / rows[1]["audio"])
    soundfile.write(folder / rows[1]["audio"], samples[::-1], rate_hz)
    soundfile.write(folder / "new.wav", samples / 2, rate_hz)
    rows += [{**rows[1], "audio": "new.wav"}]
    rows[-2]["end"] = 1.4
    given = {"manifest": write_jsonl(folder / "corpus.jsonl", rows), **tools}
    assert shard(out=tmp_path / "reused", reuse=old, **given) == 0
    assert f"reused: {len(rows) - 3} clips" in capsys.readouterr().out
    assert shard(out=tmp_path / "fresh", **given) == 0
    assert folder_bytes(tmp_path / "reused") == folder_bytes(tmp_path / "fresh")


def test_other_thresholds_and_a_figure_that_was_never_measured(tmp_path, audio, tools, old, no_encode, monkeypatch):
    """Speech is looked for in the samples; a corpus where it was gives nothing of it to one that does not ask."""
    folder, rows = audio
    (tmp_path / "screening.yaml").write_text("min_speech_share: 0.0\nmin_duration_sec: 0.75\n")
    given = {"manifest": write_jsonl(tmp_path / "corpus.jsonl", rows), "audio_root": folder, **tools}
    measured = {**given, "screening": tmp_path / "screening.yaml"}
    assert shard(out=tmp_path / "measured", reuse=old, **measured) == 0
    assert shard(out=tmp_path / "again", reuse=tmp_path / "measured", **measured) == 0
    write_jsonl(given["manifest"], rows[:8])
    assert shard(out=tmp_path / "less", reuse=tmp_path / "measured", **given) == 0
    monkeypatch.undo()
    assert shard(out=tmp_path / "fresh_less", **given) == 0
    write_jsonl(given["manifest"], rows)
    assert shard(out=tmp_path / "fresh", **measured) == 0
    fresh = folder_bytes(tmp_path / "fresh")
    assert b'"too_short"' in fresh["failures.jsonl"]
    assert folder_bytes(tmp_path / "measured") == fresh
    assert folder_bytes(tmp_path / "again") == fresh
    assert folder_bytes(tmp_path / "less") == folder_bytes(tmp_path / "fresh_less")


def altered(old, folder, **changes):
    """A copy of the corpus whose corpus.json says something else."""
    shutil.copytree(old, folder)
    info = json.loads((folder / "corpus.json").read_text())
    for name, values in changes.items():
        info[name] |= values
    write_record(folder / "corpus.json", info)
    return folder


def test_a_corpus_that_cannot_be_reused_is_refused(tmp_path, audio, tools, old):
    folder, rows = audio
    given = {"manifest": write_jsonl(tmp_path / "corpus.jsonl", rows), "audio_root": folder, **tools}
    out = tmp_path / "out"
    other = altered(old, tmp_path / "codec", codec={"fingerprint": "0123456789abcdef"})
    error = refused(out=out, reuse=other, **given)
    assert_parts(error, str(other), "the codec 0123456789ab", "as --audio-tokenizer and --hubert are now", "afresh")
    less = altered(old, tmp_path / "less", settings={"precision": "bf16"})
    error = refused(out=out, reuse=less, **given)
    assert_parts(error, str(less), "--precision bf16", "--device cpu --precision fp32", "afresh")
    without = altered(old, tmp_path / "without", waveforms={"format": "none"})
    error = refused(out=out, reuse=without, **given)
    assert_parts(error, str(without), "without waveforms", "flac waveforms", "--waveforms none")
    assert_parts(refused(out=old, reuse=old, **given), "--reuse", "is to be written", "earlier corpus", "--out")
    error = refused(out=out, reuse=tmp_path, **given)
    assert_parts(error, str(tmp_path), "no corpus.json", "a folder that preprocess.shard finished", "again")
    assert not out.exists()


def test_codes_of_other_packages_are_taken_and_told_of(tmp_path, audio, tools, old, no_encode, capsys):
    folder, rows = audio
    other = altered(old, tmp_path / "pins", pins={"torch": "1.0", "instruction_set": "SSE"})
    given = {"manifest": write_jsonl(tmp_path / "corpus.jsonl", rows), "audio_root": folder, **tools}
    out = tmp_path / "out"
    assert shard(out=out, reuse=other, **given) == 0
    assert "its codes were made with instruction_set SSE, torch 1.0" in capsys.readouterr().out
    reused_pins = {"torch": "1.0", "instruction_set": "SSE"}
    assert json.loads((out / "corpus.json").read_text())["reused_pins"] == reused_pins
    error = refused(out=out, **given)
    assert_parts(error, str(out), "reused_pins.torch = None", "reused_pins.torch = '1.0'", "same settings")
    assert shard(out=tmp_path / "next", reuse=out, **given) == 0
    assert json.loads((tmp_path / "next/corpus.json").read_text())["reused_pins"] == reused_pins


@pytest.mark.long
def test_one_corrected_word_in_ten_thousand_rows_encodes_nothing(
    tmp_path, model_folder, codec_folder, hubert_folder, monkeypatch, capsys
):
    """The earlier corpus has codes of noise, since encoding is what would take the time."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for number in range(10_000):
        soundfile.write(tmp_path / f"audio/{number}.wav", rng.normal(0, 0.1, 4800), 8000)
    rows = [{"audio": f"audio/{n}.wav", "text": "صباح الخير", "speaker": f"s{n % 100}"} for n in range(10_000)]
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    given = {"manifest": write_jsonl(tmp_path / "corpus.jsonl", rows), **tools}
    monkeypatch.setattr(make_shard, "encode_waveform", lambda *_: rng.integers(1024, size=(8, 15), dtype=np.uint16))
    assert shard(out=tmp_path / "old", **given) == 0
    monkeypatch.delattr(make_shard, "encode_waveform")
    rows[4321]["text"] = "صباح النور"
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    assert shard(out=tmp_path / "new", reuse=tmp_path / "old", **given) == 0
    assert "reused: 10000 clips" in capsys.readouterr().out
    old, new = Corpus(tmp_path / "old"), Corpus(tmp_path / "new")
    assert all(np.array_equal(old.clip(row).codes, new.clip(row).codes) for row in range(10_000))
    changed = [row for row in range(10_000) if old.meta(row)["text"] != new.meta(row)["text"]]
    assert [new.meta(row)["source"] for row in changed] == ["audio/4321.wav"]
