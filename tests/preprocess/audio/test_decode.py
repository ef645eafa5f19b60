"""Decoding gives the samples Boson would see, and says what is wrong with a file that libsndfile takes silently."""

import io
import itertools
import shutil
import subprocess
import tracemalloc

import librosa
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from preprocess.audio import ffmpeg, recording
from preprocess.audio.decode import WAVEFORM_SAMPLE_RATE_HZ, Audio, decode, duration_if_longer, flac_16khz, probe
from preprocess.audio.recording import embedded_bytes
from preprocess.common.errors import Rejected
from tests.fixtures.speech import save_variant
from tests.preprocess.helpers import assert_parts


@pytest.fixture(scope="module")
def speech(speech_folder):
    return speech_folder / "salma/000.wav"


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_decoded_samples_equal_librosa(suffix, channels, speech, tmp_path):
    if suffix == "mp3" and channels == 3:
        channels = 2
    path = save_variant(speech, tmp_path / f"x.{suffix}", channels=channels)
    audio = decode(path)
    expected, rate_hz = librosa.load(path, sr=None, mono=True)
    assert audio.sample_rate_hz == rate_hz
    assert audio.waveform.dtype == np.float32
    assert np.array_equal(audio.waveform, expected)


def test_an_extension_is_not_trusted(speech, tmp_path):
    path = save_variant(speech, tmp_path / "x.mp3").rename(tmp_path / "x.wav")
    assert np.array_equal(decode(path).waveform, librosa.load(path, sr=None)[0])


@pytest.mark.parametrize("name", ["x.wav", "x.mp3", "x.flac", "x.aiff", "x.au", "x.caf", "x.w64"])
def test_a_file_cut_in_half_is_truncated(name, speech, tmp_path):
    path = save_variant(speech, tmp_path / name)
    whole_sec = decode(path).duration_sec
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    probe(path)  # the header alone looks whole
    with pytest.raises(Rejected) as caught:
        decode(path)
    assert (caught.value.status, caught.value.reason) == ("failed", "truncated")
    assert_parts(caught.value, str(path), "s of audio", f"{whole_sec:.2f} s, as its header says", "cut short")


def test_a_flac_with_a_flipped_bit_is_not_audio(speech, tmp_path):
    path = save_variant(speech, tmp_path / "x.flac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    with pytest.raises(Rejected) as caught:
        decode(path)
    assert_parts(caught.value, str(path), "can read to its end", "a whole audio file", "record it again")


def test_a_streamed_wav_that_does_not_know_its_length_is_whole(speech, tmp_path):
    """ffmpeg writes 0xFFFFFFFF as size when it writes to a pipe."""
    data = bytearray(speech.read_bytes())
    size = data.index(b"data") + 4
    data[4:8] = data[size : size + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(data)
    assert np.array_equal(decode(tmp_path / "piped.wav").waveform, decode(speech).waveform)


def test_an_mp3_without_a_length_tag_is_whole(speech, tmp_path):
    """libsndfile then guesses the length from the first frame, which says little at a variable bit rate."""
    samples, rate_hz = soundfile.read(speech)
    samples = np.concatenate([samples, np.zeros(30000), samples * 0.01, samples])
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="MP3", bitrate_mode="VARIABLE")
    data = buffer.getvalue()
    second_frame = data.index(b"\xff\xf3", 60)
    (tmp_path / "x.mp3").write_bytes(data[second_frame:])
    with soundfile.SoundFile(tmp_path / "x.mp3") as file:
        guess_sec = file.frames / file.samplerate
    audio = decode(tmp_path / "x.mp3")
    assert guess_sec > 1.5 * audio.duration_sec
    assert probe(tmp_path / "x.mp3").duration_sec == pytest.approx(audio.duration_sec, abs=0.1)
    assert audio.duration_sec == pytest.approx(len(samples) / rate_hz, abs=0.2)


@pytest.mark.parametrize(
    ("data", "reason", "found"),
    [
        (None, "missing_file", "no such file"),
        (b"", "empty_file", "0 bytes"),
        (b"not audio at all, whatever its name says", "not_audio", "no audio that libsndfile or ffprobe can read"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not_audio", "no audio that libsndfile or ffprobe can read"),
    ],
)
def test_what_is_no_audio_is_rejected_by_its_header(data, reason, found, tmp_path):
    path = tmp_path / "x.wav"
    if data is not None:
        path.write_bytes(data)
    for look in (probe, decode):
        with pytest.raises(Rejected) as caught:
            look(path)
        assert (caught.value.status, caught.value.reason) == ("failed", reason)
        assert found in caught.value.found


def test_no_samples_and_samples_that_are_not_finite_are_rejected(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(Rejected, match="0 samples") as caught:
        decode(tmp_path / "none.wav")
    assert caught.value.reason == "not_audio"
    samples = np.zeros(16000, np.float32)
    samples[77] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(Rejected) as caught:
        decode(tmp_path / "nan.wav")
    assert caught.value.reason == "not_finite"
    assert_parts(caught.value, "nan.wav", "NaN or infinite", "finite samples", "16-bit PCM")


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 48000])
def test_the_stored_waveform_is_16_khz_and_as_long_and_loud(rate_hz):
    seconds = np.arange(2 * rate_hz) / rate_hz
    tone = (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    data = flac_16khz(Audio(tone, rate_hz, ""))
    assert data == flac_16khz(Audio(tone, rate_hz, ""))
    stored, stored_rate_hz = soundfile.read(io.BytesIO(data))
    assert (stored_rate_hz, stored.shape) == (WAVEFORM_SAMPLE_RATE_HZ, (2 * WAVEFORM_SAMPLE_RATE_HZ,))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(stored)) / WAVEFORM_SAMPLE_RATE_HZ)
    assert np.abs(stored - expected)[400:-400].max() < 1e-3


def test_a_waveform_beyond_full_scale_is_clipped_not_wrapped():
    loud = np.full(16000, 1.5, np.float32)
    stored, _ = soundfile.read(io.BytesIO(flac_16khz(Audio(loud, 16000, ""))))
    assert stored.min() > 0.99


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_a_part_is_what_the_whole_file_decodes_to_there(suffix, speech, tmp_path):
    """From start and end rounded to samples. A bare seek in an MP3 would give other samples for some frames."""
    path = save_variant(speech, tmp_path / f"x.{suffix}", channels=2)
    whole, rate_hz = librosa.load(path, sr=None, mono=True)
    middle_sec = (len(whole) // 2 + 0.3) / rate_hz
    borders = [0.0, 0.31234, middle_sec, len(whole) / rate_hz - 0.2, None]
    parts = [decode(path, start, end) for start, end in itertools.pairwise(borders)]
    assert [len(part.waveform) for part in parts[:1]] == [round(0.31234 * rate_hz)]
    # libsndfile's MP3 samples differ in the last bit as soon as it has been asked to seek, even to the start.
    close = {"rtol": 0, "atol": 3e-7 if suffix == "mp3" else 0}
    np.testing.assert_allclose(np.concatenate([part.waveform for part in parts]), whole, **close)
    assert {part.sha256 for part in parts} == {decode(path).sha256}
    # Where start and end fall on samples it is librosa's own part.
    expected, _ = librosa.load(path, sr=None, offset=0.5, duration=0.5)
    if suffix != "mp3":  # librosa seeks without a run-up
        assert np.array_equal(decode(path, 0.5, 1.0).waveform, expected)
    assert probe(path, 0.5, 1.0).duration_sec == pytest.approx(0.5)


@pytest.mark.parametrize(("start_sec", "end_sec"), [(0.5, 99.0), (99.0, None)])
def test_a_part_outside_its_file_is_refused(start_sec, end_sec, speech):
    whole_sec = decode(speech).duration_sec
    with pytest.raises(Rejected) as caught:
        decode(speech, start_sec, end_sec)
    assert (caught.value.status, caught.value.reason) == ("failed", "part_outside")
    assert_parts(
        caught.value, str(speech), f"start {start_sec} s, end {end_sec or ''}", f"{whole_sec:.2f} s", "Correct start"
    )


def test_an_end_that_was_rounded_up_is_the_file_s_end(speech):
    whole = decode(speech)
    part = decode(speech, 0.0, whole.duration_sec + 0.009)
    assert np.array_equal(part.waveform, whole.waveform)


def test_a_part_of_a_file_cut_short_is_refused(speech, tmp_path):
    path = save_variant(speech, tmp_path / "x.flac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    whole_sec = probe(path).duration_sec
    assert decode(path, 0.0, 0.2).duration_sec == pytest.approx(0.2, abs=1e-4)
    with pytest.raises(Rejected) as caught:
        decode(path, 0.0, whole_sec)
    assert caught.value.reason in ("truncated", "not_audio")


def test_two_hours_are_seen_without_decoding_them(speech, tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_U8") as file:
        for _ in range(120):
            file.write(np.zeros(60 * 8000, np.float32))
    tracemalloc.start()
    assert duration_if_longer(30.0, path) == 7200.0
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * 8000 * 60
    assert duration_if_longer(30.0, path, start_sec=100.0, end_sec=4000.0) == 3900.0
    assert duration_if_longer(30.0, path, start_sec=100.0, end_sec=129.0) is None
    assert duration_if_longer(30.0, speech) is None


def test_a_header_that_promises_hours_is_not_believed(speech, tmp_path):
    """A FLAC's header alone knows its length; what is there is 2 s, and `decode` says that it is cut short."""
    samples, rate_hz = soundfile.read(speech)
    soundfile.write(tmp_path / "x.flac", np.tile(samples, 30), rate_hz)
    data = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(data[: len(data) // 30])
    assert probe(tmp_path / "x.flac").duration_sec > 40
    assert duration_if_longer(30.0, tmp_path / "x.flac") is None
    with pytest.raises(Rejected, match="as its header says"):
        decode(tmp_path / "x.flac")


def by_ffmpeg(source, target, *arguments):
    """`source` saved again by ffmpeg; the suffix chooses the format."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no program ffmpeg")
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, *arguments, target], check=True)
    return target


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # librosa reads these another way
@pytest.mark.parametrize("name", ["x.m4a", "x.webm", "x.aac", "x.opus"])
@pytest.mark.parametrize("channels", ["1", "2"])
def test_what_ffmpeg_decodes_is_what_librosa_gives_boson(name, channels, speech, tmp_path):
    path = by_ffmpeg(speech, tmp_path / name, "-ac", channels)
    audio = decode(path)
    expected, rate_hz = librosa.load(path, sr=None, mono=True)
    assert audio.sample_rate_hz == rate_hz
    assert np.array_equal(audio.waveform, expected)
    assert audio.duration_sec == pytest.approx(decode(speech).duration_sec, abs=0.1)
    assert probe(path).duration_sec == pytest.approx(audio.duration_sec, abs=0.1)


def test_a_long_m4a_is_seen_by_its_header(speech, tmp_path):
    samples, rate_hz = soundfile.read(speech)
    soundfile.write(tmp_path / "x.wav", np.tile(samples, 20), rate_hz)
    path = by_ffmpeg(tmp_path / "x.wav", tmp_path / "x.m4a")
    assert duration_if_longer(30.0, path) == pytest.approx(20 * len(samples) / rate_hz, abs=0.2)
    whole = decode(path)
    part = decode(path, 1.0, 2.0)
    assert np.array_equal(part.waveform, whole.waveform[whole.sample_rate_hz : 2 * whole.sample_rate_hz])


def test_a_broken_m4a_and_one_without_ffmpeg_are_named(speech, tmp_path, monkeypatch):
    path = by_ffmpeg(speech, tmp_path / "x.m4a")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(Rejected) as caught:
        decode(path)
    assert caught.value.reason == "truncated"
    assert_parts(caught.value, str(path), "bytes of its box mdat", "as its header says", "copy or record it again")
    path.write_bytes(data)
    decode(path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Rejected) as caught:
        probe(path)
    assert caught.value.reason == "needs_ffmpeg"
    assert_parts(caught.value, str(path), "no program ffprobe", "on the PATH", "apt install ffmpeg")


def test_a_part_of_an_mp3_begins_with_the_right_samples_wherever_it_lies(speech, tmp_path):
    """Few frames borrow bits from the ones before: a bare seek is wrong at one place in sixty here."""
    path = save_variant(speech, tmp_path / "x.mp3")
    whole = decode(path)
    for first in range(1000, 50000, 777):
        start_sec, end_sec = first / whole.sample_rate_hz, (first + 5000) / whole.sample_rate_hz
        part = decode(path, start_sec, end_sec).waveform
        np.testing.assert_allclose(part, whole.waveform[first : first + 5000], rtol=0, atol=3e-7)


def test_a_path_that_cannot_be_looked_at_is_rejected(tmp_path):
    with pytest.raises(Rejected) as caught:
        probe(tmp_path / ("x" * 5000))
    assert_parts(caught.value, "xxx", "can't be checked", "an audio file", "--audio-root")
    assert caught.value.reason == "missing_file"


def test_a_program_that_hangs_over_a_file_costs_that_file(tmp_path, monkeypatch):
    """A stand-in on the PATH: no file is known over which ffprobe hangs."""
    program = tmp_path / "ffprobe"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(ffmpeg, "_LONGEST_SEC", 0.5)
    (tmp_path / "a.m4a").write_bytes(b"no audio")
    with pytest.raises(Rejected) as caught:
        probe(tmp_path / "a.m4a")
    assert_parts(caught.value, "a.m4a", "ffprobe was still at work after 0.5 s", "a file that can be read", "Convert")


def test_a_row_group_that_would_fill_the_memory_is_refused_by_its_size(tmp_path, monkeypatch):
    path = tmp_path / "train.parquet"
    audio = pa.StructArray.from_arrays([pa.array([b"a" * 1000] * 12)], ["bytes"])
    table = pa.table({"audio": audio, "text": ["x"] * 12})
    pq.write_table(table, path, row_group_size=6, compression="none", use_dictionary=False)
    assert len(embedded_bytes(str(path), "audio", 12)) == 1000
    monkeypatch.setattr(recording, "_MOST_BYTES", 5000)
    recording._row_group.cache_clear()
    with pytest.raises(Rejected) as caught:
        embedded_bytes(str(path), "audio", 12)
    assert_parts(caught.value, "train.parquet", "row group 1 of ", "a whole Parquet file", "row_group_size=100")
