"""One clip's surprise costs that clip: whatever is raised, wherever, and a library that crashes or hangs."""

import errno
import io
import json
import os
import random
import tarfile
import time

import pytest

import preprocess.encode.judge_clip as judge_clip_module
import preprocess.encode.make_shard as make_shard_module
from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError, Rejected, costs_its_item
from preprocess.corpus.shards import Corpus
from preprocess.encode.probe import probe_clips
from preprocess.plan.clips import ClipPlan
from tests.preprocess.helpers import failures, shard

PLACES = ("duration_if_longer", "decode", "resample_to_codec", "audio_figures", "text_figures", "encode_waveform")
PLACES += ("flac_16khz", "code_entropy_bits", "num_flac_samples", "probe")
SURPRISES = (
    ValueError("array is too big"),
    RuntimeError("a libsndfile error"),
    TypeError("a wrong type"),
    MemoryError(),
    OSError(errno.EIO, "Input/output error"),
    RecursionError("too deep"),
    AssertionError("what can't be"),
    ZeroDivisionError("division by zero"),
)


@pytest.fixture(scope="module")
def given(short_folder, model_folder, codec_folder, hubert_folder):
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    return {"manifest": short_folder / "corpus.jsonl", "workers": 1, "val_speakers": "0", **tools}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, given):
    """{key: (members of the tar, row of the index)} of an undisturbed run."""
    out = tmp_path_factory.mktemp("expected") / "out"
    assert shard(out=out, **given) == 0
    return contents(out)


def contents(out):
    rows = {row["key"]: row for row in Corpus(out).index.to_pylist()}
    members = {key: {} for key in rows}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                members[key][name] = tar.extractfile(member).read()
    places = ("shard", "row", "json_offset", "codes_offset", "flac_offset", "offset")
    return {
        key: (
            members[key],
            {name: value for name, value in row.items() if name not in places and "offset" not in name},
        )
        for key, row in rows.items()
    }


def raise_over(monkeypatch, place, name, surprise):
    """Let the function `place` raise for the recording whose path ends in `name`; workers are forked with it."""
    current = []
    decode = Recording.duration_if_longer

    def remember(recording, *arguments):
        current[:] = [recording.path]
        return decode(recording, *arguments)

    def surprising(original, path_of):
        def call(*arguments, **options):
            if path_of(arguments).endswith(name):
                raise surprise
            return original(*arguments, **options)

        return call

    if hasattr(Recording, place):
        monkeypatch.setattr(Recording, place, surprising(getattr(Recording, place), lambda given: given[0].path))
    else:
        monkeypatch.setattr(Recording, "duration_if_longer", remember)
        module = judge_clip_module if hasattr(judge_clip_module, place) else make_shard_module
        monkeypatch.setattr(module, place, surprising(getattr(module, place), lambda given: current[0]))


@pytest.mark.parametrize("seed", range(len(PLACES)))
def test_the_others_are_as_without_it(seed, given, expected, tmp_path, monkeypatch):
    rng = random.Random(seed)
    place, surprise = PLACES[seed], rng.choice(SURPRISES)
    key = rng.choice(sorted(expected))
    name = json.loads(expected[key][0]["json"])["source"]
    raise_over(monkeypatch, place, name, surprise)
    out = tmp_path / "out"
    assert shard(out=out, **given) == 0
    assert contents(out) == {other: value for other, value in expected.items() if other != key}
    (record,) = [record for record in failures(out) if record["clip"] == key]
    assert (record["status"], record["reason"]) == ("failed", "unexpected_error")
    assert type(surprise).__name__ in record["found"]
    assert str(surprise) in record["found"]
    assert "Traceback" in record["traceback"]
    assert name in record["where"]
    (row,) = [record for record in failures(out) if record["line"] is not None]
    assert row["reason"] == "unexpected_error"


def test_a_clip_that_failed_so_is_tried_again(given, expected, tmp_path, monkeypatch):
    out, key = tmp_path / "out", min(expected)
    name = json.loads(expected[key][0]["json"])["source"]
    with monkeypatch.context() as patch:
        raise_over(patch, "decode", name, OSError(errno.EIO, "Input/output error"))
        assert shard(out=out, **given) == 0
    assert key not in contents(out)
    assert shard(out=out, **given) == 0
    assert contents(out) == expected


def test_a_run_in_which_all_raise_ends_and_names_the_exception(given, tmp_path, monkeypatch):
    raise_over(monkeypatch, "decode", "", ZeroDivisionError("division by zero"))
    with pytest.raises(InputError, match=r"ZeroDivisionError: division by zero"):
        shard(out=tmp_path / "out", **given)


def test_an_input_error_stays_as_it_is():
    for error in (InputError("a", "b", "c", "d"), Rejected("screened", "too_short", "a", "b", "c", "d")):
        with pytest.raises(InputError) as caught, costs_its_item("x.wav"):
            raise error
        assert caught.value is error


def clip_of(path):
    return ClipPlan(path.name, path.name, str(path))


def test_a_header_over_which_a_library_crashes_or_hangs_costs_its_file(short_folder, tmp_path, monkeypatch):
    source = next(short_folder.rglob("*.wav"))
    names = [f"{number}.wav" for number in range(9)]
    for name in names:
        (tmp_path / name).write_bytes(source.read_bytes())
    original = Recording.probe

    def probe(recording):
        if recording.path.endswith("3.wav"):
            os._exit(11)
        if recording.path.endswith("6.wav"):
            time.sleep(60)
        if recording.path.endswith("8.wav"):
            raise io.UnsupportedOperation("no seek")
        return original(recording)

    monkeypatch.setattr(Recording, "probe", probe)
    headers, rejected = probe_clips([clip_of(tmp_path / name) for name in names], 2, max_silence_sec=1.0)
    assert sorted(headers) == [name for name in names if name not in ("3.wav", "6.wav", "8.wav")]
    assert "exit code 11" in rejected["3.wav"].found
    assert "no sign of life for 1 s" in rejected["6.wav"].found
    assert {rejected[name].reason for name in ("3.wav", "6.wav")} == {"worker_died"}
    assert (rejected["8.wav"].reason, rejected["8.wav"].found) == (
        "unexpected_error",
        "UnsupportedOperation: no seek",
    )
