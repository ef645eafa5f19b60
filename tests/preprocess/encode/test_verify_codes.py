"""preprocess.verify with the codec: codes in shards are compared with Boson's own encode of the source files."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from preprocess import verify
from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file
from preprocess.common.record import write_record
from preprocess.corpus.shards import Clip, Corpus, read_info, write_corpus, write_shard
from preprocess.corpus.storage import LocalFolder
from preprocess.encode.verify_codes import choose_rows
from tests.preprocess.helpers import assert_parts, flags, shard, write_jsonl


@pytest.fixture(scope="module")
def tools(codec_folder, hubert_folder):
    return {"audio_tokenizer": codec_folder, "hubert": hubert_folder}


@pytest.fixture(scope="module")
def made(tmp_path_factory, short_folder, model_folder, tools):
    """(folder of recordings, corpus): eight files, parts of one, two rows of Parquet, and noisy copies."""
    folder = tmp_path_factory.mktemp("made") / "audio"
    shutil.copytree(short_folder, folder)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    rows += [{**rows[0], "start": 0.05, "end": 0.7}]
    write_jsonl(folder / "corpus.jsonl", rows)
    audio = [{"bytes": (folder / row["audio"]).read_bytes(), "path": None} for row in rows[:2]]
    samples, rate_hz = soundfile.read(folder / rows[0]["audio"])
    soundfile.write(folder / "other.wav", samples / 2, rate_hz)
    audio[0]["bytes"] = (folder / "other.wav").read_bytes()
    table = {name: [row[name] for row in rows[:2]] for name in ("text", "speaker")}
    (folder / "parquet").mkdir()
    pq.write_table(pa.table({"audio": audio, **table}), folder / "parquet/train.parquet")
    common = {"model": model_folder, "workers": 1, **tools}
    out = folder.parent / "out"
    assert shard(manifest=folder / "corpus.jsonl", out=out, noisy_references=1, **common) == 0
    embedded = folder.parent / "embedded"
    assert shard(manifest=folder / "parquet", out=embedded, **common) == 0
    return folder, out, embedded


def run(folder, tools, **more):
    return verify.main([str(folder), *flags(**tools, **more)])


def test_codes_of_files_parts_and_rows_of_parquet_are_bosons(made, tools, capsys):
    audio_root, out, embedded = made
    assert run(out, tools, audio_root=audio_root) == 0
    said = capsys.readouterr().out
    assert "equal codes, by codebook: " + ", ".join(["100.0000%"] * 8) in said
    assert "9 clips tried, 0 problems" in said
    assert run(embedded, tools, audio_root=audio_root / "parquet") == 0
    assert "2 clips tried, 0 problems" in capsys.readouterr().out


def test_the_choice_is_of_recordings_and_the_same_each_time(made):
    corpus = Corpus(made[1])
    chosen = choose_rows(corpus, 4)
    assert len(chosen) == 4
    assert chosen == choose_rows(corpus, 4)
    assert set(chosen) < set(choose_rows(corpus, 100))
    assert len(choose_rows(corpus, 100)) == 9 < corpus.index.num_rows


def changed(source, folder, key, change):
    """A copy of the corpus in which the codes of clip `key` are `change` of what they were; all hashes fit."""
    corpus = Corpus(source)
    shutil.copytree(source, folder)
    info, rows = read_info(LocalFolder(source)), corpus.index.to_pylist()
    (entry,) = info["shards"]
    clips = [corpus.clip(number, waveform=True) for number in range(len(rows))]
    clips = [Clip(c.key, c.meta, change(c.codes.copy()) if c.key == key else c.codes, c.flac) for c in clips]
    places = write_shard(folder / entry["name"], clips)
    path = folder / entry["name"]
    info["shards"] = [{**entry, "bytes": path.stat().st_size, "sha256": sha256_file(path)}]
    info.pop("index")
    frames = [{"frames": clip.codes.shape[1]} for clip in clips]
    write_corpus(folder, [{**row, **p, **f} for row, p, f in zip(rows, places, frames, strict=True)], info)
    return folder


def test_one_other_code_is_found_and_its_clip_named(tmp_path, made, tools, capsys):
    audio_root, out, _ = made
    key = Corpus(out).index.column("key")[choose_rows(Corpus(out), 1)[0]].as_py()

    def change(codes):
        codes[3, 5] ^= 1
        return codes

    assert run(changed(out, tmp_path / "code", key, change), tools, audio_root=audio_root, clips=1) == 2
    said = capsys.readouterr().out
    assert f"[{key}]: found 1 of {8 * 20} codes that differ" in said
    assert said.count("100.0000%") == 7
    cut = changed(out, tmp_path / "cut", key, lambda codes: np.ascontiguousarray(codes[:, :-1]))
    assert run(cut, tools, audio_root=audio_root) == 2
    assert f"[{key}]: found codes of shape (8, 19)" in capsys.readouterr().out


def test_sources_that_are_gone_or_changed_are_named(tmp_path, made, tools, capsys):
    audio_root, out, _ = made
    root = shutil.copytree(audio_root, tmp_path / "audio")
    rows = [json.loads(line) for line in (root / "corpus.jsonl").read_text().splitlines()]
    (root / rows[1]["audio"]).unlink()
    samples, rate_hz = soundfile.read(root / rows[2]["audio"])
    soundfile.write(root / rows[2]["audio"], samples[::-1], rate_hz)
    assert run(out, tools, audio_root=root) == 2
    said = capsys.readouterr().out
    assert f"no source {root / rows[1]['audio']}" in said
    assert f"source {root / rows[2]['audio']} with sha256" in said
    assert "2 problems" in said
    assert "100.0000%" in said


def test_another_codec_and_an_unknown_root_are_refused(tmp_path, made, tools):
    _, out, _ = made
    with pytest.raises(InputError) as caught:
        run(out, tools)
    assert_parts(caught.value, "--audio-root", "nothing", "lies under", "Name that folder")
    with pytest.raises(InputError) as caught:
        verify.main([str(out), *flags(hubert=tools["hubert"])])
    assert_parts(caught.value, "command line", "one of", "both", "Add the other")
    other = shutil.copytree(out, tmp_path / "other")
    info = json.loads((other / "corpus.json").read_text())
    info["codec"]["fingerprint"] = "0123456789abcdef"
    write_record(other / "corpus.json", info)
    with pytest.raises(InputError) as caught:
        run(other, tools, audio_root=tmp_path)
    assert_parts(
        caught.value, str(tools["audio_tokenizer"]), "fingerprint", "0123456789ab", "the corpus was made with"
    )
