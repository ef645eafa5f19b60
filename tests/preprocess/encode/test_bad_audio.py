"""The bad-audio list: what a speech team's folder holds besides speech, and what becomes of each."""

import numpy as np
import pytest
import soundfile
import soxr

from preprocess.corpus.shards import Corpus
from tests.fixtures.speech import save_variant
from tests.preprocess.helpers import row_failure, shard, write_jsonl

SECONDS = 1.2


def whole(samples, rate_hz, path):
    soundfile.write(path, samples, rate_hz)


def half_of(samples, rate_hz, path):
    whole(samples, rate_hz, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_flipped_bytes(samples, rate_hz, path):
    whole(samples, rate_hz, path)
    data = bytearray(path.read_bytes())
    for position in range(len(data) // 2, len(data) // 2 + 400, 7):
        data[position] ^= 0xFF
    path.write_bytes(data)


def no_frames(samples, rate_hz, path):
    whole(samples[:0], rate_hz, path)


def no_bytes(samples, rate_hz, path):
    path.write_bytes(b"")


def html(samples, rate_hz, path):
    path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")


def mp3(samples, rate_hz, path):
    soundfile.write(path, samples, rate_hz, format="MP3")


def one_nan(samples, rate_hz, path):
    soundfile.write(path, np.where(np.arange(len(samples)) == 777, np.nan, samples), rate_hz, subtype="FLOAT")


def peak_6(samples, rate_hz, path):
    soundfile.write(path, samples / np.abs(samples).max() * 6.0, rate_hz, subtype="FLOAT")


def anti_phase(samples, rate_hz, path):
    whole(np.stack([samples, -samples], axis=1), rate_hz, path)


def eight_channels(samples, rate_hz, path):
    whole(np.repeat(samples[:, None], 8, axis=1), rate_hz, path)


def at_rate(new_rate_hz):
    return lambda samples, rate_hz, path: whole(soxr.resample(samples, rate_hz, new_rate_hz), new_rate_hz, path)


def two_hours(samples, rate_hz, path):
    """8 kHz, one byte per sample; the file is sparse."""
    soundfile.write(path, np.zeros(8), 8000, subtype="PCM_U8")
    data = bytearray(path.read_bytes())
    num_bytes = 2 * 3600 * 8000
    size = data.index(b"data") + 4
    data[size : size + 4], data[4:8] = num_bytes.to_bytes(4, "little"), (num_bytes + size - 4).to_bytes(4, "little")
    path.write_bytes(data[: size + 4])
    with open(path, "r+b") as file:
        file.truncate(size + 4 + num_bytes)


def silence(samples, rate_hz, path):
    whole(np.zeros_like(samples), rate_hz, path)


def a_twentieth_of_a_second(samples, rate_hz, path):
    whole(samples[: rate_hz // 20], rate_hz, path)


# name of the file, how it is made, what becomes of it, why, and what the record says was found
LIST = [
    ("cut.wav", half_of, "failed", "truncated", "0.60 s of audio"),
    ("cut.mp3", half_of, "failed", "truncated", "s of audio"),
    ("flipped.flac", with_flipped_bytes, "failed", "not_audio", "can read to its end"),
    ("no_frames.wav", no_frames, "failed", "not_audio", "0 samples"),
    ("no_bytes.wav", no_bytes, "failed", "empty_file", "0 bytes"),
    ("html.wav", html, "failed", "not_audio", "no audio that libsndfile or ffprobe can read"),
    ("mp3.wav", mp3, "used", None, None),
    ("nan.wav", one_nan, "failed", "not_finite", "NaN or infinite"),
    ("peak_6.wav", peak_6, "screened", "beyond_full_scale", "a peak of 6.00"),
    ("anti_phase.wav", anti_phase, "screened", "too_quiet", "an RMS level of -120.0 dBFS"),
    ("eight_channels.wav", eight_channels, "used", None, None),
    ("8khz.wav", at_rate(8000), "used", None, None),
    ("96khz.wav", at_rate(96000), "used", None, None),
    ("two_hours.wav", two_hours, "screened", "too_long", "7200.00 s of audio"),
    ("silence.wav", silence, "screened", "too_quiet", "an RMS level of -120.0 dBFS"),
    ("short.wav", a_twentieth_of_a_second, "screened", "too_short", "0.050 s of audio"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, speech_folder, model_folder, codec_folder, hubert_folder):
    """All of the list as one manifest, line after line, under the default screening."""
    folder = tmp_path_factory.mktemp("bad_audio")
    samples, rate_hz = soundfile.read(speech_folder / "salma/000.wav", dtype="float32", frames=round(SECONDS * 22050))
    for name, make, *_ in LIST:
        make(samples, rate_hz, folder / name)
    texts = ["صباح الخير"] * len(LIST)
    rows = [{"audio": row[0], "text": text, "speaker": "s"} for row, text in zip(LIST, texts, strict=True)]
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    assert shard(manifest=write_jsonl(folder / "m.jsonl", rows), out=folder / "out", workers=1, **tools) == 0
    return Corpus(folder / "out")


@pytest.mark.parametrize("line", range(1, len(LIST) + 1), ids=[row[0] for row in LIST])
def test_each_file_is_used_screened_or_failed_with_its_reason(line, corpus):
    name, _, status, reason, found = LIST[line - 1]
    used = {corpus.clip(row).meta["source"]: row for row in range(corpus.index.num_rows)}
    assert (name in used) == (status == "used")
    if status == "used":
        clip = corpus.clip(used[name], waveform=True)
        assert clip.meta["duration_sec"] == pytest.approx(SECONDS, abs=0.1)
        assert clip.codes.shape[1] == pytest.approx(25 * SECONDS, abs=3)
        assert -40 < clip.meta["quality"]["rms_dbfs"] < -10
    else:
        record = row_failure(corpus.folder, line)
        assert (record["status"], record["reason"]) == (status, reason)
        assert found in record["found"]
        assert record["action"]


def test_hours_that_are_screened_are_counted(corpus):
    assert corpus.info["lost_hours"]["too_long"] == 2.0


def test_the_rate_of_a_file_does_not_hide_its_bandwidth(speech_folder, tmp_path):
    from preprocess.audio.decode import decode
    from preprocess.judges.figures import bandwidth_hz

    source = speech_folder / "salma/000.wav"
    telephone = save_variant(source, tmp_path / "telephone.wav", sample_rate_hz=8000)
    wrapped = save_variant(telephone, tmp_path / "wrapped.wav", sample_rate_hz=24000)
    assert bandwidth_hz(decode(source)) > 7000
    assert 3000 < bandwidth_hz(decode(wrapped)) <= 4100
