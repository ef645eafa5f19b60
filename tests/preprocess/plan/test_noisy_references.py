"""--noisy-references: copies with noise and a room, for references alone; what is told of recordings stays true."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile

from launch import show
from preprocess.audio.decode import Audio, Header
from preprocess.audio.noise import Augmentation, augment
from preprocess.common.errors import Rejected
from preprocess.corpus.shards import Corpus
from preprocess.corpus.verify_shards import verify_corpus
from preprocess.encode import make_shard
from preprocess.options import parse_settings
from preprocess.plan.clips import ClipPlan, ClipTable
from preprocess.plan.noisy_references import add_noisy_references
from tests.preprocess.helpers import assert_parts, flags, folder_bytes, refused, shard, write_jsonl

RATE_HZ = 16000
SPEECH = Audio(np.random.default_rng(1).normal(0, 0.05, RATE_HZ).astype(np.float32), RATE_HZ, "")


@pytest.fixture(scope="module")
def disturbers(tmp_path_factory):
    """A folder of noises and one of room responses, of other rates than SPEECH's."""
    folder = tmp_path_factory.mktemp("disturbers")
    for name in ("noise/street", "rooms"):
        (folder / name).mkdir(parents=True)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * 44100) / 44100)
    soundfile.write(folder / "noise/street/tone.wav", tone, 44100)
    (folder / "noise/README.txt").write_text("about")
    soundfile.write(folder / "rooms/direct.wav", [0.0] * 50 + [0.5] + [0.0] * 50, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "rooms/echo.wav", [0.0] * 50 + [0.5] + [0.0] * 79 + [0.25], RATE_HZ, subtype="FLOAT")
    return folder / "noise", folder / "rooms"


def power(waveform):
    return np.mean(np.square(waveform, dtype=np.float64))


@pytest.mark.parametrize("snr_db", [5.0, 14.5])
def test_the_noise_is_the_files_at_the_ratio_that_is_told(snr_db, disturbers):
    how = Augmentation(7, snr_db, "street/tone.wav", "", 1.25, "direct.wav", "")
    noisy = augment(SPEECH, how, *disturbers)
    added = noisy.waveform - SPEECH.waveform
    assert (noisy.waveform.dtype, noisy.waveform.shape) == (np.float32, SPEECH.waveform.shape)
    assert 10 * np.log10(power(SPEECH.waveform) / power(added)) == pytest.approx(snr_db, abs=0.01)
    tone = np.sin(2 * np.pi * 440 * (1.25 + np.arange(RATE_HZ) / RATE_HZ))
    assert np.corrcoef(added[100:-100], tone[100:-100])[0, 1] > 0.999


def test_the_room_is_convolved_from_its_direct_sound_on(disturbers):
    how = Augmentation(7, 100.0, "street/tone.wav", "", 0.0, "echo.wav", "")
    expected = SPEECH.waveform.astype(np.float64)
    expected[80:] += 0.5 * SPEECH.waveform[:-80]
    expected *= np.sqrt(power(SPEECH.waveform) / power(expected))
    assert np.abs(augment(SPEECH, how, *disturbers).waveform - expected).max() < 1e-5


def test_made_up_noise_and_rooms_differ_by_seed_and_are_the_same_for_one():
    waves = [augment(SPEECH, Augmentation(seed, 10.0), None, None).waveform for seed in (1, 1, 2)]
    assert np.array_equal(waves[0], waves[1])
    assert not np.allclose(waves[0], waves[2], atol=0.01)
    assert 0.5 < power(waves[0]) / power(SPEECH.waveform) / 1.1 < 2


def test_loud_recordings_stay_below_full_scale():
    loud = Audio((SPEECH.waveform / np.abs(SPEECH.waveform).max()).astype(np.float32), RATE_HZ, "")
    assert np.abs(augment(loud, Augmentation(1, 5.0), None, None).waveform).max() <= 0.99 + 1e-6


def test_silence_in_the_noise_is_refused_for_the_clip(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE_HZ), RATE_HZ)
    with pytest.raises(Rejected) as caught:
        augment(SPEECH, Augmentation(1, 5.0, "silence.wav", "", 0.0), tmp_path, None)
    assert (caught.value.status, caught.value.reason) == ("screened", "silent_noise")


def choose(share, num_clips, validation=None):
    """Keys chosen of clips by 20 voices that draw, one that does not and one of a single clip."""
    clips = [ClipPlan(f"clip-{n}", "", "", "text", f"voice-{n % 20}", draws_reference=True) for n in range(num_clips)]
    clips += [ClipPlan(f"named-{n}", "", "", "text", "named") for n in range(10)]
    clips += [ClipPlan("lonely", "", "", "text", "lonely", draws_reference=True)]
    table = ClipTable({clip.key: clip for clip in clips}, [], [], 0, validation)
    args = parse_settings(flags(manifest="m", model="m", dry_run=True, noisy_references=share))
    headers = {key: Header(1, 3.0) for key in table.clips}
    add_noisy_references(args, table, headers)
    assert headers.keys() == table.clips.keys()
    return {clip.derived_from: clip for clip in table.clips.values() if clip.derived_from}


def test_the_share_is_kept_and_a_clips_fate_is_its_own():
    some, more = choose(0.25, 1000), choose(0.25, 2000)
    assert 200 < len(some) < 300
    assert some.items() <= more.items()
    assert some.keys() < choose(0.5, 1000).keys()
    assert choose(1.0, 1000).keys() == {f"clip-{n}" for n in range(1000)}
    assert "clip-3" not in choose(1.0, 100, validation={"clip-3"})
    ratios = [clip.augmentation.snr_db for clip in choose(1.0, 1000).values()]
    assert 5 <= min(ratios) < 6
    assert 14 < max(ratios) <= 15


@pytest.fixture(scope="module")
def given(tmp_path_factory, short_folder, model_folder, codec_folder, hubert_folder):
    """Flags of a command on eight clips and one that is too short, one voice held out."""
    folder = tmp_path_factory.mktemp("audio") / "audio"
    shutil.copytree(short_folder, folder)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    samples, rate_hz = soundfile.read(folder / rows[0]["audio"], frames=8000)
    soundfile.write(folder / "brief.wav", samples, rate_hz)
    rows.append({**rows[0], "audio": "brief.wav"})
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "workers": 1}
    manifest = write_jsonl(folder / "corpus.jsonl", rows)
    return {"manifest": manifest, "hours_per_shard": 0.0004, "val_speakers": 1, **tools}


@pytest.fixture(scope="module")
def clean(tmp_path_factory, given):
    out = tmp_path_factory.mktemp("clean") / "out"
    assert shard(out=out, **given) == 0
    return Corpus(out)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory, given, disturbers):
    out = tmp_path_factory.mktemp("noisy") / "out"
    noise, rooms = disturbers
    assert shard(out=out, noisy_references=1, noise=noise, room_responses=rooms, **given) == 0
    return Corpus(out)


def by_key(corpus):
    return {row["key"]: {**row, "number": number} for number, row in enumerate(corpus.index.to_pylist())}


def test_each_training_clip_has_a_copy_that_is_a_reference_only(clean, noisy, disturbers):
    rows = by_key(noisy)
    copies = {row["derived_from"]: row for row in rows.values() if row["derived_from"]}
    assert copies.keys() == by_key(clean).keys()
    assert {row["split"] for row in copies.values()} == {"train", "val"}
    for key, copy in copies.items():
        original, meta = rows[key], noisy.meta(copy["number"])
        assert copy["key"] == f"{key}-noisy"
        assert (copy["draws_reference"], copy["dialogues"]) == (False, [])
        for name in ("speaker", "text_tokens", "frames", "duration_sec", "split"):
            assert copy[name] == original[name]
        clean_stays = "validation_stays_clean" if copy["split"] == "val" else None
        assert (copy["use"], copy["reason"]) == (clean_stays is None, clean_stays)
        assert meta["augmentation"]["noise"] == "street/tone.wav"
        assert meta["augmentation"]["response"] in ("direct.wav", "echo.wav")
        waves = [noisy.clip(row["number"], waveform=True).flac for row in (original, copy)]
        assert waves[0] != waves[1]
        codes = [noisy.clip(row["number"]).codes for row in (original, copy)]
        assert np.mean(codes[0] != codes[1]) > 0.3


def test_recordings_and_what_is_told_of_them_are_as_without_copies(clean, noisy):
    for name in ("hours", "lost_hours", "rows", "clips", "samples", "speakers", "speech", "digits"):
        assert noisy.info[name] == clean.info[name], name
    assert noisy.info["clips"] == {"written": 8, "screened": 1, "failed": 0}
    assert noisy.info["derived_clips"] == {"written": 8, "screened": 1, "failed": 0}
    assert "derived_clips" not in clean.info
    rows = by_key(noisy)
    for key, row in by_key(clean).items():
        assert np.array_equal(clean.clip(row["number"]).codes, noisy.clip(rows[key]["number"]).codes)
        assert (rows[key]["split"], rows[key]["use"]) == (row["split"], row["use"])
    assert [problem for _, found in verify_corpus(noisy.folder) for problem in found] == []
    assert "8 noisy copies" not in (clean.folder / "report.html").read_text()
    assert "9 noisy copies" in (noisy.folder / "report.html").read_text()


def test_show_draws_no_copy_of_the_clip_itself_and_says_that_a_copy_is_no_target(noisy, model_folder, capsys):
    rows = by_key(noisy)
    for key, row in rows.items():
        assert show.main([str(noisy.folder), key, "--model", str(model_folder)]) == 0
        said = capsys.readouterr().out
        names = re.findall(r"^sample 1 of 1 in .*; reference, drawn: (.+)$", said, flags=re.MULTILINE)
        if row["draws_reference"]:
            assert names[0] in rows
            assert names[0] not in (key, f"{key}-noisy")
            assert f"reference {names[0]}, {rows[names[0]]['frames']} frames" in said
        else:
            assert names == []
            why = "the clip is no target, only a reference of others" if row["use"] else "the clip is not used: "
            assert f"no sample is trained on it: {why}" in said


def test_the_same_bytes_with_more_workers_and_from_an_earlier_corpus(tmp_path, given, noisy, disturbers, monkeypatch):
    noise, rooms = disturbers
    given = {**given, "noisy_references": 1, "noise": noise, "room_responses": rooms}
    assert shard(out=tmp_path / "many", **{**given, "workers": 3}) == 0
    monkeypatch.delattr(make_shard, "encode_waveform")
    assert shard(out=tmp_path / "reused", reuse=noisy.folder, **given) == 0
    assert folder_bytes(tmp_path / "many") == folder_bytes(noisy.folder)
    assert folder_bytes(tmp_path / "reused") == folder_bytes(noisy.folder)


def test_other_noise_makes_the_copies_again(tmp_path, given, noisy, disturbers, capsys):
    out = shutil.copytree(noisy.folder, tmp_path / "out")
    noise = shutil.copytree(disturbers[0], tmp_path / "noise")
    given = {**given, "noisy_references": 1, "room_responses": disturbers[1]}
    assert shard(out=out, noise=noise, **given) == 0
    num_shards = len(noisy.info["shards"])
    assert f"{num_shards} of {num_shards} shards are finished already" in capsys.readouterr().out
    samples, rate_hz = soundfile.read(noise / "street/tone.wav")
    soundfile.write(noise / "street/tone.wav", samples[::-1], rate_hz)
    assert shard(out=out, noise=noise, **given) == 0
    assert "finished already" not in capsys.readouterr().out


def test_folders_that_cannot_be_used_are_refused_before_any_work(tmp_path, given):
    given = {**given, "out": tmp_path / "out"}
    assert_parts(refused(noise=tmp_path, **given), "command line", "alone", "--noisy-references", "0.2")
    assert_parts(refused(noisy_references=1.5, **given), "--noisy-references", "1.5", "from 0 to 1", "0.2")
    error = refused(noisy_references=1, noise=tmp_path / "nowhere", **given)
    assert_parts(error, "--noise", "no such folder", "nowhere", "another folder")
    error = refused(noisy_references=1, room_responses=tmp_path, **given)
    assert_parts(error, "--room-responses", "no audio files", ".wav, .flac", "another folder")
    (tmp_path / "page.wav").write_text("<html>")
    error = refused(noisy_references=1, noise=tmp_path, **given)
    assert_parts(error, "--noise", "1 files without audio", "audio files", "Remove them")
    assert "page.wav" in error.found
    assert not (tmp_path / "out").exists()
