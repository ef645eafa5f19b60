"""A preview says what the run will do: which rows it will lose and why, the hours, and where it will stop."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import soundfile

from preprocess.audio.recording import Recording
from preprocess.encode.clip_pool import for_each_clip
from preprocess.plan.clips import ClipPlan
from tests.preprocess.helpers import failures, shard, write_jsonl

ACCOUNTS = ("rows: ", "clips: ", "train: ", "val: ")


@pytest.fixture(scope="module")
def tools(model_folder, codec_folder, hubert_folder):
    return {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}


@pytest.fixture(scope="module")
def lossy(tmp_path_factory, short_folder):
    """A corpus that loses rows for reasons in the manifest, the headers, the audio and the accounts."""
    folder = tmp_path_factory.mktemp("lossy") / "corpus"
    shutil.copytree(short_folder, folder)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    rate_hz = 24_000
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * rate_hz)
    for name, samples in {
        "short": noise[:4000],
        "long": np.tile(noise, 16),
        "silent": 1e-6 * noise,
        "loud": np.clip(100 * noise, -1, 1),
        "twice": noise,
        "again": noise,
        "other": noise[::-1],
    }.items():
        soundfile.write(folder / f"{name}.wav", samples, rate_hz, subtype="FLOAT")
    whole = (folder / "twice.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "text.wav").write_text("no audio")
    (folder / "empty.wav").touch()
    damaged = soundfile.SoundFile(folder / "damaged.flac", "w", rate_hz, 1)
    damaged.write(noise)
    damaged.close()
    data = bytearray((folder / "damaged.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (folder / "damaged.flac").write_bytes(data)
    for name in ("short", "long", "silent", "loud", "cut", "text", "empty", "missing"):
        rows.append({"audio": f"{name}.wav", "text": f"words of {name}", "speaker": "salma"})
    rows += [
        {"audio": "damaged.flac", "text": "damaged", "speaker": "salma"},
        {"audio": "twice.wav", "text": "the same", "speaker": "omar"},
        {"audio": "again.wav", "text": "the same", "speaker": "omar"},
        {"audio": "other.wav", "text": "of a lost reference", "reference_audio": "cut.wav", "reference_text": "cut"},
        rows[0],
        {"audio": "twice.wav", "text": "nan", "speaker": "omar"},
        {"audio": "twice.wav", "text": "hi <|eot_id|>", "speaker": "omar"},
        {"audio": "other.wav", "text": "no speaker"},
        {"audio": "no text.wav", "speaker": "omar"},
    ]
    return write_jsonl(folder / "corpus.jsonl", [*rows, "{broken"])


def accounts(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(ACCOUNTS)]


def test_a_preview_that_decodes_gives_the_accounts_of_the_run(lossy, tools, tmp_path, capsys):
    assert shard(manifest=lossy, out=tmp_path / "out", workers=2, **tools) == 0
    run = capsys.readouterr()
    assert shard(manifest=lossy, validate_only=True, **tools) == 0
    preview = capsys.readouterr()
    assert accounts(preview.out) == accounts(run.out)
    assert len(accounts(run.out)) == 4
    reasons = {record["reason"] for record in failures(tmp_path / "out") if record["line"]}
    assert reasons == {
        *("too_short", "too_long", "too_quiet", "clipped", "truncated", "not_audio", "empty_file", "missing_file"),
        *("duplicate", "reference_truncated", "same_row", "missing_value", "special_token", "no_speaker"),
        *("malformed_json", "missing_column"),
    }
    named = [line for line in run.err.splitlines() if line.startswith(("failed", "screened"))]
    assert len(named) > 12
    assert named == [line for line in preview.err.splitlines() if line.startswith(("failed", "screened"))]


def test_a_preview_by_headers_names_what_headers_show(lossy, tools, tmp_path, capsys):
    assert shard(manifest=lossy, dry_run=True, out=tmp_path / "out", **tools) == 0
    said = capsys.readouterr()
    assert "what a run would give, by the files' headers (--validate-only decodes every clip):" in said.out
    for reason in ("too_short", "too_long", "missing_file", "empty_file", "malformed_json", "no_speaker"):
        assert f" ({reason}): " in said.err
    assert "too_quiet" not in said.err
    assert not (tmp_path / "out").exists()


STOPS = {
    "the headers": ("headers", lambda n: {"audio": f"missing{n}.wav"}),
    "the manifest": ("manifest", lambda n: {"audio": f"{n}.wav", "text": "<|eot_id|>"}),
    "the audio": ("decoding", lambda n: {"audio": "cut.flac", "start": n / 1000, "end": 1 + n / 1000}),
}


@pytest.mark.parametrize("preview", ["validate_only", "dry_run"])
@pytest.mark.parametrize("place", STOPS)
def test_the_exit_code_of_a_preview_is_1_where_the_run_would_stop(place, preview, lossy, tools, tmp_path, capsys):
    """More than 5 % of 200 rows; what a preview by headers can't see, it can't say."""
    stage, change = STOPS[place]
    shutil.copy(lossy.parent / "damaged.flac", tmp_path / "cut.flac")
    shutil.copy(lossy.parent / "other.wav", tmp_path / "good.wav")
    good = [{"audio": "good.wav", "text": f"{n}", "start": n / 500, "end": 1 + n / 500} for n in range(180)]
    bad = [{"text": f"{n}", **change(n)} for n in range(30)]
    manifest = write_jsonl(tmp_path / "m.jsonl", [*good, *bad])
    flags = {"manifest": manifest, "speaker": "s", "model": tools["model"]}
    stops = not (place == "the audio" and preview == "dry_run")
    assert shard(**flags, **{preview: True}) == stops
    said = capsys.readouterr().err
    assert (f"a run would stop: {stage}: " in said) == stops
    assert not stops or "30 of 2" in said
    assert shard(**flags, **{preview: True}, max_failure_share=0.5) == 0


def test_a_preview_of_which_nothing_is_left_says_that_the_run_would_stop(tools, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(48_000), 24_000)
    manifest = write_jsonl(tmp_path / "m.jsonl", [{"audio": "a.wav", "text": "x", "speaker": "s"}])
    assert shard(manifest=manifest, model=tools["model"], validate_only=True) == 1
    said = capsys.readouterr().err
    assert "a run would stop: " in said
    assert "no row that can be used" in said
    assert "too_quiet" in said


@pytest.mark.parametrize("how", ["segfault", "hang", "raise"])
def test_a_library_that_crashes_or_hangs_over_a_clip_costs_a_preview_that_clip(how, monkeypatch):
    def decode(recording):
        if recording.path != "13.wav":
            return recording.path
        if how == "raise":
            raise MemoryError
        return os.kill(os.getpid(), signal.SIGKILL) if how == "segfault" else time.sleep(600)

    monkeypatch.setattr(Recording, "decode", decode)
    clips = [ClipPlan(f"k{n}", f"{n}.wav", f"{n}.wav") for n in range(100)]
    found = for_each_clip(lambda clip: clip.recording.decode(), clips, 2, "decoding", max_silence_sec=3)
    assert [result for n, result in enumerate(found) if n != 13] == [f"{n}.wav" for n in range(100) if n != 13]
    expected = {"segfault": "exit code -9", "hang": "no sign of life for 3 s", "raise": "MemoryError"}
    assert expected[how] in found[13].found
    assert found[13].where == "13.wav"
