"""No second of speech is lost in silence: a file is decoded to its end, or rejected by name.

The files are made here by the programs that make them in the world. Whole is whole by the count of samples and by
correlation with what was encoded.
"""

import contextlib
import re
import shutil
import subprocess
import wave

import librosa
import numpy as np
import pytest
import soundfile
import soxr

from preprocess.audio.decode import decode, duration_if_longer, probe
from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected

RATE_HZ, SECONDS = 24000, 4.52
COMPARED_HZ = 4000


@pytest.fixture(scope="module")
def speech(speech_folder, tmp_path_factory):
    """4.52 s of speech as 16-bit WAV, 24 kHz, mono."""
    samples, rate_hz = soundfile.read(speech_folder / "salma/000.wav", dtype="float32")
    samples = soxr.resample(np.tile(samples, 3), rate_hz, RATE_HZ)[: round(SECONDS * RATE_HZ)]
    path = tmp_path_factory.mktemp("every_second") / "speech.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")
    return path


def run(*command, stdin=None):
    """A program's output; skips the test where the program is missing."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no program {command[0]}")
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, check=False)
    if b"Unknown encoder" in done.stderr:
        pytest.skip(f"{command[0]} without an encoder: {command}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def ffmpeg(source, *options, to=None):
    """What ffmpeg writes into a file that it can seek in (`to`), or into a pipe."""
    run("ffmpeg", "-v", "error", "-y", "-i", source, *options, to or "-")
    return to.read_bytes() if to else run("ffmpeg", "-v", "error", "-y", "-i", source, *options, "-")


def id3(num_bytes):
    """An ID3v2 tag of zeros."""
    size = bytes(num_bytes - 10 >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + bytes(num_bytes - 10)


def with_data_size(wav, num_bytes):
    """A WAV of a 44-byte header with other sizes in it."""
    riff = (num_bytes + 36) & 0xFFFFFFFF if num_bytes else 0
    return wav[:4] + riff.to_bytes(4, "little") + wav[8:40] + num_bytes.to_bytes(4, "little") + wav[44:]


def first_mpeg_frame(data):
    """Where the first two frames of an MP3 begin."""
    starts = [found.start() for found in re.finditer(rb"\xff[\xf2\xf3\xfa\xfb]", data)]
    return starts[0], next(start for start in starts if start > starts[0] + 40)


def noise_then_silence_through_a_pipe(speech, folder):
    rng = np.random.default_rng(0)
    samples = np.concatenate([0.3 * rng.standard_normal(36000), np.zeros(72480)])
    soundfile.write(folder / "noise.wav", np.clip(samples, -1, 1), RATE_HZ, subtype="PCM_16")
    data = ffmpeg(folder / "noise.wav", "-c:a", "libmp3lame", "-q:a", "4", "-f", "mp3")
    return data[first_mpeg_frame(data)[1] :]


def mp3(speech, folder):
    return ffmpeg(speech, "-c:a", "libmp3lame", "-q:a", "4", to=folder / "speech.mp3")


def two_mp3(speech, folder):
    return mp3(speech, folder) + run("lame", "--quiet", "-b", "64", speech, "-")


def flac_file(speech, folder):
    run("flac", "-s", "-f", "-o", folder / "speech.flac", speech)
    return (folder / "speech.flac").read_bytes()


def flac_that_declares(num_samples):
    def make(speech, folder):
        data = bytearray(flac_file(speech, folder))
        declared = int.from_bytes(data[21:26], "big") & ~((1 << 36) - 1) | num_samples
        data[21:26] = declared.to_bytes(5, "big")
        return bytes(data)

    return make


def codec(encoder, suffix, *options):
    return lambda speech, folder: ffmpeg(speech, "-c:a", encoder, *options, to=folder / f"made.{suffix}")


def piped(encoder, container, *options):
    return lambda speech, folder: ffmpeg(speech, "-c:a", encoder, *options, "-f", container)


def cut(make, share):
    def cut_file(speech, folder):
        data = make(speech, folder)
        return data[: int(share * len(data))]

    return cut_file


def twice(make):
    return lambda speech, folder: 2 * make(speech, folder)


def wav(speech, folder):
    return speech.read_bytes()


def wav_at(rate_hz):
    def make(speech, folder):
        data = bytearray(speech.read_bytes())
        data[24:28] = rate_hz.to_bytes(4, "little")
        data[28:32] = (2 * rate_hz & 0xFFFFFFFF).to_bytes(4, "little")
        return bytes(data)

    return make


def speex(speech, folder):
    return ffmpeg(speech, "-c:a", "libspeex", "-ar", "16000", to=folder / "made.ogg")


def sphere(speech, folder):
    run("sox", speech, folder / "made.sph")
    return (folder / "made.sph").read_bytes()


vorbis, opus = codec("libvorbis", "ogg"), codec("libopus", "opus")
m4a, webm = codec("aac", "m4a"), codec("libopus", "webm")

# (name, how it is made, how often the speech is in it)
WHOLE = [
    ("noise_then_silence_piped.mp3", noise_then_silence_through_a_pipe, 1),
    ("two.mp3", two_mp3, 2),
    ("twice_with_tags.mp3", twice(mp3), 2),
    ("piped.mp3", piped("libmp3lame", "mp3", "-q:a", "4"), 1),
    ("lame_piped.mp3", lambda speech, _: run("lame", "--quiet", "-V", "4", "-", "-", stdin=speech.read_bytes()), 1),
    ("two_tags.mp3", lambda speech, folder: id3(500) + mp3(speech, folder), 1),
    ("leading_zeros.mp3", lambda speech, folder: bytes(3000) + mp3(speech, folder), 1),
    ("id3v1.mp3", lambda speech, folder: mp3(speech, folder) + b"TAG" + bytes(125), 1),
    ("mp3_inside.wav", codec("libmp3lame", "wav"), 1),
    ("tag_before_riff.wav", lambda speech, folder: id3(510) + wav(speech, folder), 1),
    ("updated_at_half_time.wav", lambda speech, folder: with_data_size(wav(speech, folder), 108480), 1),
    ("size_0.wav", lambda speech, folder: with_data_size(wav(speech, folder), 0), 1),
    ("size_unknown.wav", lambda speech, folder: with_data_size(wav(speech, folder), 0xFFFFFFFF), 1),
    ("twice.wav", twice(wav), 2),
    ("g726.wav", codec("g726", "wav", "-ar", "8000"), 1),
    ("adpcm.wav", codec("adpcm_ima_wav", "wav"), 1),
    ("sphere.sph", sphere, 1),
    ("unknown_length.flac", piped("flac", "flac"), 1),
    ("twice.flac", twice(flac_file), 2),
    ("declares_half.flac", flac_that_declares(54240), 1),
    ("vorbis.ogg", vorbis, 1),
    ("twice.ogg", twice(vorbis), 2),
    ("twice.opus", twice(opus), 2),
    ("flac.ogg", codec("flac", "ogg"), 1),
    ("speex.ogg", speex, 1),
    ("aac.m4a", m4a, 1),
    ("twice.m4a", twice(m4a), 2),
    ("opus.webm", webm, 1),
    ("piped.webm", piped("libopus", "webm"), 1),
    ("wma.wma", codec("wmav2", "wma"), 1),
    ("piped.wma", piped("wmav2", "asf"), 1),
    ("adts.aac", codec("aac", "aac"), 1),
]
# (name, how it is made, reason, in the found, in the expected)
REJECTED = [
    ("cut.ogg", cut(vorbis, 0.6), "truncated", r"\d\.\d\d s of audio without the last page", "a page that ends it"),
    ("cut.opus", cut(opus, 0.6), "truncated", r"\d\.\d\d s of audio without the last page", "a page that ends it"),
    ("cut.wav", cut(wav, 0.6), "truncated", r"2\.71 s of audio", "4.52 s, as its header says"),
    ("cut.flac", cut(flac_file, 0.6), "truncated", r"\d\.\d\d s of audio", "4.52 s, as its header says"),
    ("cut.mp3", cut(mp3, 0.6), "truncated", r"\d\.\d\d s of audio", "4.5. s, as its header says"),
    ("cut.m4a", cut(m4a, 0.6), "truncated", r"\d+ bytes of its box mdat", r"\d+, as its header says"),
    ("cut.webm", cut(webm, 0.6), "not_audio", "can read to its end", "a whole audio file"),
    ("cut.wma", cut(codec("wmav2", "wma"), 0.6), "truncated", r"\d+ bytes", r"\d+, as its header says"),
    ("cut.aac", cut(codec("aac", "aac"), 0.6), "truncated", "no AAC frame", "whole frames"),
    ("cut_piped.mp3", cut(piped("libmp3lame", "mp3"), 0.6), "truncated", "breaks off", "whole frames"),
    ("declares_the_most.flac", flac_that_declares((1 << 36) - 1), "truncated", "4.52 s of audio", "2863311.53 s"),
    ("2_hz.wav", wav_at(2), "sample_rate", "2 Hz", "2000 to 768000 Hz"),
    ("2_ghz.wav", wav_at(2_000_000_000), "sample_rate", "2000000000 Hz", "2000 to 768000 Hz"),
]


def at_compared_rate(samples, rate_hz):
    return soxr.resample(samples.astype(np.float32), rate_hz, COMPARED_HZ)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # librosa reads some another way
@pytest.mark.parametrize(("name", "make", "times"), WHOLE, ids=[row[0] for row in WHOLE])
def test_a_whole_file_is_decoded_to_its_end(name, make, times, speech, tmp_path):
    path = tmp_path / name
    path.write_bytes(make(speech, tmp_path))
    audio = decode(path)
    assert audio.duration_sec == pytest.approx(times * SECONDS, rel=0.02)
    assert np.array_equal(decode(path, data=path.read_bytes()).waveform, audio.waveform)  # as Parquet holds it
    with contextlib.suppress(ValueError, EOFError):  # librosa can't read all of them
        librosas, _ = librosa.load(path, sr=None, mono=True)
        assert len(librosas) != len(audio.waveform) or np.array_equal(librosas, audio.waveform)
    source = tmp_path / "noise.wav" if "noise" in name else speech
    expected = at_compared_rate(np.tile(soundfile.read(source)[0], times), RATE_HZ)
    found = at_compared_rate(audio.waveform, audio.sample_rate_hz)
    for end in range(len(expected) // times, len(expected) + 1, len(expected) // times):
        last = slice(end - 2 * COMPARED_HZ, end)  # the last two seconds of each time are where they were
        if np.any(np.abs(expected[last]) > 0.01):
            lags = np.correlate(np.pad(found, 2000)[max(last.start, 0) : last.stop + 4000], expected[last], "valid")
            power = np.linalg.norm(expected[last]) * np.linalg.norm(found[last])
            assert lags.max() > 0.7 * power
            assert abs(int(lags.argmax()) - 2000) < 0.1 * COMPARED_HZ * times


@pytest.mark.parametrize(("name", "make", "reason", "found", "expected"), REJECTED, ids=[row[0] for row in REJECTED])
def test_a_file_with_less_is_rejected_with_what_is_there_and_what_should_be(
    name, make, reason, found, expected, speech, tmp_path
):
    path = tmp_path / name
    path.write_bytes(make(speech, tmp_path))
    for data in (None, path.read_bytes()):
        with pytest.raises(Rejected) as caught:
            decode(path, data=data)
        assert (caught.value.status, caught.value.reason) == ("failed", reason)
        assert re.search(found, caught.value.found)
        assert re.search(expected, caught.value.expected)


@pytest.mark.parametrize("name", ["two.mp3", "unknown_length.flac", "aac.m4a", "twice.ogg", "piped.mp3"])
def test_parts_are_cut_from_all_of_the_audio(name, speech, tmp_path):
    path = tmp_path / name
    path.write_bytes(next(make for other, make, _ in WHOLE if other == name)(speech, tmp_path))
    whole = decode(path)
    late_sec = whole.duration_sec - 1.0
    part = decode(path, late_sec, late_sec + 0.5)
    first = round(late_sec * whole.sample_rate_hz)
    expected = whole.waveform[first : first + len(part.waveform)]
    np.testing.assert_allclose(part.waveform, expected, rtol=0, atol=3e-7)
    assert probe(path, late_sec, late_sec + 0.5).duration_sec == pytest.approx(0.5)


def test_parts_before_the_cut_of_a_file_are_used_and_those_behind_it_are_not(speech, tmp_path):
    path = tmp_path / "cut.wav"
    path.write_bytes(cut(wav, 0.6)(speech, tmp_path))
    whole = decode(speech)
    assert np.array_equal(decode(path, 1.0, 2.5).waveform, whole.waveform[RATE_HZ : round(2.5 * RATE_HZ)])
    for end_sec in (3.0, None):
        with pytest.raises(Rejected, match="as its header says") as caught:
            decode(path, 1.0, end_sec)
        assert caught.value.reason == "truncated"


def test_an_end_rounded_to_a_tenth_is_the_end_of_the_file_and_is_reported(speech, tmp_path):
    path = tmp_path / "x.wav"
    samples, _ = soundfile.read(speech)
    soundfile.write(path, samples[: round(4.46 * RATE_HZ)], RATE_HZ)
    part = decode(path, 1.0, 4.5)
    assert part.duration_sec == pytest.approx(3.46, abs=1e-4)
    header = probe(path, 1.0, 4.5)
    assert header.duration_sec == pytest.approx(3.46, abs=1e-4)
    assert header.end_beyond_sec == pytest.approx(0.04, abs=1e-4)
    assert probe(path, 1.0, 4.4).end_beyond_sec == 0
    for look in (probe, decode):
        with pytest.raises(Rejected) as caught:
            look(path, 1.0, 4.6)
        assert caught.value.reason == "part_outside"


def test_a_channel_is_picked_and_the_difference_of_two_is_measured(speech, tmp_path):
    samples, _ = soundfile.read(speech, dtype="float32")
    soundfile.write(tmp_path / "two.wav", np.stack([samples, 0 * samples], axis=1), RATE_HZ, subtype="FLOAT")
    path = str(tmp_path / "two.wav")
    mean, first, second = Recording(path).decode(), Recording(path, channel=0).decode(), Recording(path, channel=1)
    assert np.array_equal(first.waveform, samples)
    assert np.array_equal(mean.waveform, samples / 2)
    assert not second.decode().waveform.any()
    assert mean.channel_difference == pytest.approx(1.0)
    assert str(second) == f"{path}^1"
    with pytest.raises(Rejected) as caught:
        Recording(path, channel=2).decode()
    assert (caught.value.reason, caught.value.found) == ("no_such_channel", "2 channels")
    soundfile.write(path, np.stack([samples, samples], axis=1), RATE_HZ, subtype="FLOAT")
    assert Recording(path).decode().channel_difference == 0


def test_a_length_is_known_without_decoding_where_a_header_guesses_or_lies(speech, tmp_path):
    for name, times in (("piped.mp3", 1), ("unknown_length.flac", 1), ("size_0.wav", 1)):
        path = tmp_path / name
        path.write_bytes(next(make for other, make, _ in WHOLE if other == name)(speech, tmp_path))
        assert probe(path).duration_sec == pytest.approx(times * SECONDS, rel=0.02)
        assert duration_if_longer(30.0, path) is None
    path.write_bytes(flac_that_declares((1 << 36) - 1)(speech, tmp_path))
    assert probe(path).duration_sec == pytest.approx(SECONDS, rel=0.02)


FORMATS = {
    "wav": {"subtype": "PCM_16"},
    "flac": {"subtype": "PCM_16"},
    "ogg": {"subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
    "aiff": {"subtype": "PCM_16"},
    "au": {"subtype": "PCM_16"},
    "caf": {"subtype": "PCM_16"},
    "w64": {"subtype": "PCM_16"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
}


def with_other_bytes(rng, data):
    """A file with one to three bytes of its header changed."""
    changed = bytearray(data)
    for at in rng.integers(0, min(len(data), 120), rng.integers(1, 4)):
        changed[at] = rng.choice([0, 255, rng.integers(256)])
    return bytes(changed)


def without_a_stretch(rng, data):
    first, last = sorted(rng.integers(0, len(data), 2))
    return data[:first] + data[last:]


CHANGES = {
    "the end cut off": lambda rng, data: data[: rng.integers(1, len(data))],
    "the beginning cut off": lambda rng, data: data[rng.integers(1, len(data)) :],
    "a stretch cut out": without_a_stretch,
    "other bytes in the header": with_other_bytes,
    "another one behind it": lambda rng, data: 2 * data,
}


def length_or_reason(path, data):
    """Number of samples of a clip, or the reason for which it is rejected."""
    try:
        return len(decode(path, data=data).waveform)
    except Rejected as rejected:
        return rejected.reason


@pytest.mark.parametrize("suffix", FORMATS)
def test_whatever_is_done_to_a_file_its_clip_is_whole_or_rejected(suffix, speech, tmp_path, monkeypatch):
    """With the readers of libsndfile alone: what only ffmpeg could save is then rejected, too."""
    monkeypatch.setenv("PATH", "")
    samples, _ = soundfile.read(speech)
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, samples, RATE_HZ, **FORMATS[suffix])
    data, rng, outcomes = path.read_bytes(), np.random.default_rng(7), set()
    whole = len(decode(path).waveform)
    for _ in range(60):
        for what, change in CHANGES.items():
            times = 2 if what == "another one behind it" else 1
            outcome = length_or_reason(path, change(rng, data))
            if isinstance(outcome, int):
                assert outcome == pytest.approx(times * whole, rel=0.02), what
            outcomes.add("whole" if isinstance(outcome, int) else outcome)
    assert {"whole", "truncated"} <= outcomes


def test_no_length_that_a_header_claims_is_allocated(speech, tmp_path):
    """A WAV of 4 KB that claims 2 GB, as one whose size is unknown does."""
    path = tmp_path / "x.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(bytes(4000))
    path.write_bytes(with_data_size(path.read_bytes(), 0x7FFFFFF0))
    assert decode(path).duration_sec == pytest.approx(1000 / RATE_HZ, abs=1e-4)
