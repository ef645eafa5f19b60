"""--noisy-references: a second clip of a share of the recordings, spoilt by noise and a room.

Such a clip is drawn as a reference and is never a target, nor the reference of its own clean clip: the model hears a
poor recording and answers with clean speech. Which clips, and how each is spoilt, depends on the seed and the clip's
key alone. Voices of which no reference is drawn, and the clips of --val-manifest, have none. Screening and quality
figures are those of the clean recording, but for the entropy of the codes.
"""

import argparse
import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr
from tqdm import tqdm

from preprocess.audio import Audio, Header, decode, file_sha256, probe
from preprocess.clips import ClipTable, Disturbance
from preprocess.errors import InputError, Rejected

KEY_SUFFIX = "-noisy"
_SNR_DB = 5.0, 15.0
_DECAY_SEC = 0.1, 0.6  # RT60 of a made-up room: seconds until its echo is 60 dB down
_DIRECT_TO_ECHO_DB = 0.0, 10.0
_COLOUR = 0.0, 2.0  # power of made-up noise falls with frequency to this power: white to brown
_HIGHEST_PEAK = 0.99
_SILENT_RMS = 1e-5
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def add_noisy_references(args: argparse.Namespace, table: ClipTable, headers: dict[str, Header]) -> None:
    """Put the second clips into `table` and `headers`. Raises InputError for folders or files that can't be used."""
    noises, responses = _Files("--noise", args.noise), _Files("--room-responses", args.room_responses)
    clips = [table.clips[key] for key in sorted(headers) if key not in (table.validation or ())]
    num_clips = Counter(clip.speaker for clip in clips)
    drawing = {clip.speaker for clip in clips if clip.draws_reference and num_clips[clip.speaker] > 1}
    for clip in tqdm(clips, desc="noise", unit="clip", leave=False):
        digest = hashlib.sha256(f"{args.seed}:noisy:{clip.key}".encode()).digest()
        if clip.speaker not in drawing or int.from_bytes(digest[:8]) >= args.noisy_references * 2**64:
            continue
        noisy = replace(
            clip,
            key=clip.key + KEY_SUFFIX,
            draws_reference=False,
            system_text="",
            dialogues=[],
            derived_from=clip.key,
            disturbance=_choose(int.from_bytes(digest[8:16]), headers[clip.key].duration_sec, noises, responses),
        )
        table.clips[noisy.key], headers[noisy.key] = noisy, headers[clip.key]
    for files in (noises, responses):
        files.refuse_problems()


class _Files:
    """The audio files of a folder by name, each opened and hashed when it is first chosen."""

    def __init__(self, flag: str, folder: Path | None) -> None:
        self.flag, self.folder, self.problems = flag, folder, []
        self._known: dict[str, tuple[float, str]] = {}
        paths = folder.rglob("*") if folder else ()
        self.names = sorted(str(path.relative_to(folder)) for path in paths if path.suffix.lower() in _SUFFIXES)
        if folder and not self.names:
            found = "no audio files" if folder.is_dir() else "no such folder"
            expected = f"{', '.join(_SUFFIXES)} files in {folder}, or in folders inside"
            raise InputError(flag, found, expected, "Name another folder.")

    def about(self, name: str) -> tuple[float, str]:
        """(seconds, sha256) of a file; a file that can't be used is a problem for later."""
        if name not in self._known:
            path = self.folder / name
            try:
                self._known[name] = probe(path).duration_sec, file_sha256(path)
            except Rejected as rejected:
                self.problems.append(rejected)
                self._known[name] = 0.0, ""
        return self._known[name]

    def refuse_problems(self) -> None:
        if self.problems:
            shown = "; ".join(f"{problem.where}: {problem.found}" for problem in self.problems[:5])
            more = ", ..." * (len(self.problems) > 5)
            raise InputError(
                self.flag, f"{len(self.problems)} files without audio ({shown}{more})", "audio files", "Remove them."
            )


def _choose(seed: int, duration_sec: float, noises: _Files, responses: _Files) -> Disturbance:
    rng = np.random.default_rng(seed)
    snr_db, place = round(float(rng.uniform(*_SNR_DB)), 2), float(rng.uniform())
    how = {"seed": seed, "snr_db": snr_db}
    if noises.names:
        name = noises.names[int(rng.integers(len(noises.names)))]
        noise_sec, sha256 = noises.about(name)
        start_sec = round(place * max(noise_sec - duration_sec, 0.0), 3)
        how |= {"noise": name, "noise_sha256": sha256, "noise_start_sec": start_sec}
    if responses.names:
        name = responses.names[int(rng.integers(len(responses.names)))]
        how |= {"response": name, "response_sha256": responses.about(name)[1]}
    return Disturbance(**how)


def disturb(audio: Audio, how: Disturbance, noise: Path | None, room_responses: Path | None) -> Audio:
    """The recording in a room, with noise: as long and, but for the noise, as loud as it is; the peak at most 0.99.

    The signal-to-noise ratio is that of the mean powers over the whole clip. Raises Rejected where the chosen part
    of the noise is silent or does not decode.

    noise, room_responses: the folders of the files that `how` names.
    """
    rate_hz = audio.sample_rate_hz
    rng = np.random.default_rng(how.seed)
    if how.response:
        response = _resampled(decode(room_responses / how.response), rate_hz)
        response = response[np.argmax(np.abs(response)) :]  # from the direct sound on: nothing is delayed
    else:
        response = _made_up_room(rng, rate_hz)
    level = _rms(audio.waveform)
    speech = _at_level(_convolve(audio.waveform, response), level)
    if how.noise:
        added = _part_of_noise(noise / how.noise, how.noise_start_sec, audio)
    else:
        added = _coloured_noise(rng, len(speech))
    mixed = speech + _at_level(added, level * 10 ** (-how.snr_db / 20))
    mixed *= min(1.0, _HIGHEST_PEAK / max(np.abs(mixed).max(), _HIGHEST_PEAK))
    return replace(audio, waveform=mixed.astype(np.float32))


def _part_of_noise(path: Path, start_sec: float, audio: Audio) -> np.ndarray:
    """float64 [samples] from `start_sec` on, at the audio's rate and as long; short noise is repeated."""
    end_sec = min(start_sec + audio.duration_sec, probe(path).duration_sec)
    noise = _resampled(decode(path, start_sec, end_sec), audio.sample_rate_hz)
    if _rms(noise) < _SILENT_RMS:
        found = f"silence from {start_sec} to {end_sec:.3f} s"
        raise Rejected("screened", "silent_noise", str(path), found, "noise", "Cut the silence out of the noise.")
    return np.resize(noise, len(audio.waveform))


def _made_up_room(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """The direct sound and an echo: white noise that decays exponentially."""
    decay_sec, ratio_db = rng.uniform(*_DECAY_SEC), rng.uniform(*_DIRECT_TO_ECHO_DB)
    time_sec = np.arange(1, round(decay_sec * rate_hz)) / rate_hz
    echo = rng.normal(size=len(time_sec)) * 10 ** (-3 * time_sec / decay_sec)
    return np.concatenate([[1.0], echo * 10 ** (-ratio_db / 20) / np.sqrt(np.sum(echo**2))])


def _coloured_noise(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    spectrum = np.fft.rfft(rng.normal(size=num_samples))
    spectrum[0] = 0.0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-rng.uniform(*_COLOUR) / 2)
    return np.fft.irfft(spectrum, num_samples)


def _convolve(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """float64, as long as the waveform."""
    size = 1 << (len(waveform) + len(response) - 2).bit_length()
    return np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]


def _resampled(audio: Audio, rate_hz: int) -> np.ndarray:
    return soxr.resample(audio.waveform, audio.sample_rate_hz, rate_hz).astype(np.float64)


def _rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def _at_level(waveform: np.ndarray, rms: float) -> np.ndarray:
    return waveform * (rms / max(_rms(waveform), 1e-12))
