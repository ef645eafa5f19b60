"""Shard format 1: what is written is what is read, by us and by stock webdataset; what decays is noticed."""

import gc
import io
import json
import os
import pickle  # noqa: S403 - of our own object
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

from preprocess.audio.decode import Audio, flac_16khz
from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file
from preprocess.common.record import write_record
from preprocess.corpus.shards import Clip, Corpus, num_flac_samples, write_corpus, write_shard
from tests.fixtures.corpus import PROMPT_FACTS
from tests.preprocess.helpers import assert_parts

_REST = {
    "text_tokens": 3,
    "duration_sec": 1.0,
    "speaker": "s",
    "language": None,
    "split": "train",
    "draws_reference": True,
    "dialogues": [],
    "use": True,
    "reason": None,
}


def index_row(place, clip):
    """The row of a clip whose members are at `place`."""
    waveform_samples = num_flac_samples(clip.flac) if clip.flac else 0
    return {**place, **_REST, "frames": clip.codes.shape[1], "waveform_samples": waveform_samples}


def _meta(text):
    return {"text": text, "text_normalised": text, "dialogues": []}


def make_clips(num_clips=5):
    rng = np.random.default_rng(0)
    clips = []
    for number in range(num_clips):
        codes = rng.integers(1024, size=(8, 10 + number), dtype=np.uint16)
        waveform = rng.uniform(-0.5, 0.5, 100 + number).astype(np.float32)
        flac = flac_16khz(Audio(waveform, 16000, "")) if number % 2 else None
        clips.append(Clip(f"clip-{number}", _meta(f"نص {number}"), codes, flac))
    return clips


def write(folder, clips):
    rows = write_shard(folder / "shard-000000.tar", clips)
    rows = [index_row(place, clip) for place, clip in zip(rows, clips, strict=True)]
    path = folder / "shard-000000.tar"
    shard = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_corpus(folder, rows, {"shards": [shard], **PROMPT_FACTS})
    return Corpus(folder)


def test_what_is_written_is_read(tmp_path):
    clips = make_clips()
    corpus = write(tmp_path, clips)
    assert corpus.index.num_rows == len(clips)
    for row, clip in enumerate(clips):
        read = corpus.clip(row, waveform=True)
        assert (read.key, read.meta, read.flac) == (clip.key, clip.meta, clip.flac)
        assert read.codes.dtype == np.uint16
        assert np.array_equal(read.codes, clip.codes)
        assert corpus.clip(row).flac is None


def test_the_same_clips_make_the_same_bytes_and_tar_reads_them(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, make_clips())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:5]] == [
        "clip-0.json",
        "clip-0.codes.npy",
        "clip-1.json",
        "clip-1.codes.npy",
        "clip-1.flac",
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "b.tar"}


def test_the_writer_of_webdataset_makes_the_bytes_of_a_plain_tar_and_the_offsets_are_exact(tmp_path):
    """No clock, no owner, the order of the format: TarWriter's own settings are otherwise."""
    clips = sorted(make_clips(40), key=lambda clip: clip.key)
    rows = write_shard(tmp_path / "shard.tar", clips)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            for suffix, data in clip.members():
                info = tarfile.TarInfo(f"{clip.key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert (tmp_path / "shard.tar").read_bytes() == plain.getvalue()
    for clip, row in zip(clips, rows, strict=True):
        for suffix, data in clip.members():
            name = suffix.split(".")[0]
            offset = row[f"{name}_offset"]
            assert row[f"{name}_bytes"] == len(data)
            assert plain.getvalue()[offset : offset + len(data)] == data


def test_stock_webdataset_reads_the_shards_of_the_command(speech_corpus):
    corpus = Corpus(speech_corpus)
    paths = [str(speech_corpus / shard["name"]) for shard in corpus.info["shards"]]
    assert len(paths) > 1
    samples = {s["__key__"]: s for s in webdataset.WebDataset(paths, shardshuffle=False)}
    assert sorted(samples) == corpus.index.column("key").to_pylist()
    for row in range(corpus.index.num_rows):
        clip = corpus.clip(row)
        sample = samples[clip.key]
        assert np.array_equal(np.load(io.BytesIO(sample["codes.npy"]), allow_pickle=False), clip.codes)
        assert json.loads(sample["json"]) == clip.meta
        waveform, rate_hz = soundfile.read(io.BytesIO(sample["flac"]))
        assert rate_hz == corpus.info["waveforms"]["sample_rate_hz"]
        assert len(waveform) / rate_hz == pytest.approx(clip.meta["duration_sec"], abs=0.001)


def test_a_changed_byte_is_noticed_where_it_is_read(tmp_path):
    corpus = write(tmp_path, make_clips())
    offset = corpus.index.column("codes_offset")[2].as_py() + 130
    with open(tmp_path / "shard-000000.tar", "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    damaged = Corpus(tmp_path)
    damaged.clip(1)
    with pytest.raises(InputError) as caught:
        damaged.clip(2)
    assert_parts(
        caught.value, "shard-000000.tar[clip-2]", "codes member with crc32", "as index.parquet says", "again"
    )


def test_a_shard_cut_at_a_member_s_border_is_noticed_at_once(tmp_path):
    corpus = write(tmp_path, make_clips())
    border = corpus.index.column("json_offset")[3].as_py() - 512
    with open(tmp_path / "shard-000000.tar", "r+b") as file:
        file.truncate(border)
    with pytest.raises(InputError) as caught:
        Corpus(tmp_path)
    assert_parts(caught.value, "shard-000000.tar", f"{border} bytes", "as corpus.json says", "Copy the file again")


def test_many_shards_need_few_open_files(tmp_path):
    clips = make_clips(200)
    rows, shards = [], []
    for number, clip in enumerate(clips):
        path = tmp_path / f"shard-{number:06d}.tar"
        rows += [index_row(place, clip) for place in write_shard(path, [clip])]
        shards.append({"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    write_corpus(tmp_path, rows, {"shards": shards, **PROMPT_FACTS})
    corpus, expected = Corpus(tmp_path), {clip.key: clip.codes for clip in clips}
    for row in [*range(200), *reversed(range(200))]:
        clip = corpus.clip(row)
        assert np.array_equal(clip.codes, expected[clip.key])
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert 0 < sum(name.startswith(f"{tmp_path}/shard-") for name in opened) <= 64


def test_a_corpus_that_is_no_longer_used_has_no_open_files(tmp_path):
    corpus = write(tmp_path, make_clips())
    sent = pickle.loads(pickle.dumps(corpus))  # noqa: S301 - as a loader worker gets it
    for each in (corpus, sent):
        each.clip(0)
    assert _num_open(tmp_path) == 2
    del corpus, sent, each
    gc.collect()
    assert _num_open(tmp_path) == 0


def _num_open(folder):
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(name.startswith(f"{folder}/shard-") for name in opened)


def test_a_folder_that_is_not_finished_is_refused(tmp_path):
    write_shard(tmp_path / "shard-000000.tar", make_clips())
    with pytest.raises(InputError) as caught:
        Corpus(tmp_path)
    assert_parts(caught.value, str(tmp_path), "no corpus.json", "finished", "continues where it stopped")


def test_a_corpus_of_another_format_is_refused(tmp_path):
    write(tmp_path, make_clips())
    info = json.loads((tmp_path / "corpus.json").read_text())
    write_record(tmp_path / "corpus.json", {**info, "format_version": 2})
    with pytest.raises(InputError) as caught:
        Corpus(tmp_path)
    assert_parts(caught.value, "corpus.json", "format_version 2", "1", "again into a new folder")


def test_the_fingerprint_changes_with_the_split_and_the_prompt(tmp_path):
    fingerprint = write(tmp_path, make_clips()).fingerprint
    info = json.loads((tmp_path / "corpus.json").read_text())
    assert Corpus(tmp_path).fingerprint == fingerprint
    write_record(tmp_path / "corpus.json", {**info, "layout": {**info["layout"], "system_text": "Shout."}})
    assert Corpus(tmp_path).fingerprint != fingerprint
